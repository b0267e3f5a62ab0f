"""robustres.dynamics."""
