"""Attempts: what one run of an operation reports, which are known, and how they are cancelled."""
