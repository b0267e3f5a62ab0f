"""Verified numerics: rigorous bounds from floating-point results."""
