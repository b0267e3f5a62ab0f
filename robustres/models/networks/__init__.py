"""Networks made of the blocks."""
