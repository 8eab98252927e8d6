"""The checks that need no server."""
