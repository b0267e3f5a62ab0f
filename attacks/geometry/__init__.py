"""Balls, hyperplanes, losses and random numbers."""
