"""Lipschitz bounds of complete networks."""
