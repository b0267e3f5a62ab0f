"""Norms of single linear maps."""
