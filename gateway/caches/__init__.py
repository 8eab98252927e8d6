"""What a gateway keeps in memory for a while."""
