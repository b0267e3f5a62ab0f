"""Claimed constants, proved or refuted."""
