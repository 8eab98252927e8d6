"""What hosts offer, what jobs need and hold of it, and what is left."""
