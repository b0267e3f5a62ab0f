"""The claims, examined on a given network."""
