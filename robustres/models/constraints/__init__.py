"""Constraints that keep a layer non-expansive."""
