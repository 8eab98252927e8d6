"""HTTP serving on top of uvicorn: listening, bounded connections, strict parsing, shutdown."""
