"""Shared by all processes: tasks, shutdown, logging, settings and the body process."""
