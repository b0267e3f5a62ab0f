"""Shift-invariant maps, frequency by frequency."""
