"""Floor 4: the `lowcloud` command."""

VERSION = "0.1.0"
"""The same as in `pyproject.toml` (a test compares them); reading the installed metadata costs 30 ms."""
