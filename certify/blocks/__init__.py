"""One residual block or region in one inequality, its multipliers and their proof."""
