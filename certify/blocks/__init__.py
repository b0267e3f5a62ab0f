"""Joint bounds of residual blocks and networks by one inequality, its multipliers and their proof."""
