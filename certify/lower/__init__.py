"""Estimates from below: Jacobians, witnesses and ascents."""
