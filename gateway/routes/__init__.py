"""The addresses of the HTTP API. Routes parse, call one thing and answer."""
