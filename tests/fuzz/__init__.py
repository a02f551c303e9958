"""Fuzzing of the delta decoder; see tests/fuzz/__main__.py."""
