"""Queries over more than one collection, each for one purpose."""
