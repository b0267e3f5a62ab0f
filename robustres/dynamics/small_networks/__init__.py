"""The small networks on which the claims are demonstrated."""
