"""What is measured on residual networks."""
