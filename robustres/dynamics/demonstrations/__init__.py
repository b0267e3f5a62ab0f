"""The claims, shown on built-in networks."""
