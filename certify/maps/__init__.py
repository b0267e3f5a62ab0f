"""The certifier's representation of linear layers and activations."""
