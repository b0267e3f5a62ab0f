"""How robust is a residual network: certified radius <= true radius <= distance of the best adversarial example."""

__version__ = "0.1.0"
