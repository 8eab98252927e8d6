"""From the jobs queue into the record."""
