"""Deleting records: on request, and by age."""
