"""robustres.training."""
