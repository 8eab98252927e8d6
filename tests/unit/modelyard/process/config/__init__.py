"""Settings from files."""
