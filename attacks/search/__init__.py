"""What iterative searches share."""
