"""The routes of the HTTP API. Each parses its request, makes one call and answers."""
