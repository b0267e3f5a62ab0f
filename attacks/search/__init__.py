"""The common parts of iterative searches."""
