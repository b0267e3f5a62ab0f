"""What keeps a layer non-expansive."""
