"""Middleware: every request passes it before its route."""
