"""Residual blocks with stated bounds."""
