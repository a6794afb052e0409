"""Encode a text: ``python encode.py TEXT FOLDER``."""

import sys
from pathlib import Path

from minigpt.text.corpus import CorpusReader

CorpusReader(Path(sys.argv[2])).open(sys.argv[1])
