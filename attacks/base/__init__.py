"""What every attack is, and what it is given and returns."""
