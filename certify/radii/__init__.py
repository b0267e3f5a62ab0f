"""Certified radii from margins."""
