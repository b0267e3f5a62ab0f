"""Audits of claimed Lipschitz constants."""
