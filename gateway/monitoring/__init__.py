"""Monitoring of the gateway: its metrics, its access log, and its log of operators' changes."""
