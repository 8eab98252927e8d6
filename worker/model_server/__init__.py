"""Talking to the model server in a container."""
