"""Tests of the health file and of what checks it."""
