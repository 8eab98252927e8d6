"""Celery and Taskiq with a task that does what an INFER does; they run in their own environment."""
