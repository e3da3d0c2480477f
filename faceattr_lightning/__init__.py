"""faceattr-lightning: train, compare and trust multi-task facial attribute models."""

__version__ = "0.1.0"
