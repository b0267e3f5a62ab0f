"""The claims, demonstrated on built-in networks."""
