"""Measurements on residual networks."""
