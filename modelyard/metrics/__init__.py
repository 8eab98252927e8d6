"""Metrics: what every process measures of itself, and the listener from which it is scraped."""
