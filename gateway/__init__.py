"""The HTTP door: validates requests, makes them durable, answers what became of them."""
