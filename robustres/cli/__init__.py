"""robustres.cli."""
