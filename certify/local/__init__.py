"""Certificates around one image: local bounds by propagation, quadratic certificates, branch and bound."""
