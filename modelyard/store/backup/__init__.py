"""Copies of the whole database in a file: to write one, and to fill an empty database from it."""
