"""robustres.data."""
