"""Executes commands: one attempt each, from its verb to its outcome."""
