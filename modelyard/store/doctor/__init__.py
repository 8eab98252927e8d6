"""Checks of the database for the doctor."""
