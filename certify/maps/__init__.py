"""What a linear layer and an activation are to the certifier."""
