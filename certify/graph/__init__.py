"""From a module to the network of linear maps, activations and merges."""
