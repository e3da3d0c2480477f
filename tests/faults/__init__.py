"""Faults on purpose: callbacks that make a run fail, and ``python -m tests.faults``, which counts what is lost."""
