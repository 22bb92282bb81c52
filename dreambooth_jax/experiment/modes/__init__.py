"""Modes of the command line, one file each, and their table."""
