"""The attacks, one per file."""
