"""Starts Modelyard on one machine: private RabbitMQ, MongoDB and Docker, and the services.

For programs: `LocalStack` in `stack.py`, and each server alone in its own file.
"""
