"""Attempts: their reports, the registry of the known ones, their cancellation, and job locks."""
