"""Verified numerics: what turns a computed number into a bound."""
