"""Inferences on a model: which of its jobs takes each of them."""
