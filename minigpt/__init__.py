"""GPT-1 from scratch in PyTorch, and one command to train it on any text."""

__version__ = "0.1.0"
