"""robustres.evaluation."""
