"""How the HTTP API is tested against its own description by schemathesis."""
