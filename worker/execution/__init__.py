"""Carrying out commands: one attempt after the other, from its verb to its outcome."""
