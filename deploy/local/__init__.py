"""Starts Modelyard on one machine: private RabbitMQ, MongoDB and Docker, and the services.

Programs use `LocalStack` in `stack.py`; each server can also be started alone, from its own file.
"""
