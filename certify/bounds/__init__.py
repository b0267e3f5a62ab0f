"""Lipschitz bounds of whole networks."""
