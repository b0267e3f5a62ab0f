"""robustres.models."""
