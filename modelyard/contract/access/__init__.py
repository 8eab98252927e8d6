"""Scopes, roles and API keys; no I/O."""
