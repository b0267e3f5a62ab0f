"""The small networks that the claims are shown on."""
