"""Encode a text: ``python encode.py TEXT FOLDER``."""

import sys

from minigpt.text.corpus import DataSettings

DataSettings(data_dir=sys.argv[2]).open(sys.argv[1])
