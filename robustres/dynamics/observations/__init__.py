"""The claims, looked at on one's own network."""
