"""Checks of the database for the doctor, and why a command did not reach it."""
