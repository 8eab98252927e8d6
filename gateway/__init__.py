"""The gateway: the HTTP API. It validates requests, makes them durable and reports their state."""
