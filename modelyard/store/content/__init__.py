"""Inputs and results that are too large for the operation's document: files in GridFS."""
