"""Fourier analysis of shift-invariant maps."""
