"""uvicorn as the gateway serves with it: listening, bounded connections, strict HTTP."""
