"""What is removed because it is old, or because nothing ever came of it."""
