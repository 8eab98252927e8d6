"""Modelyard runs model containers on plain Docker hosts, driven by durable job requests."""

__version__ = "0.1.0"
