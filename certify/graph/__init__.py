"""Capture of a module as a network of linear maps, activations and merges."""
