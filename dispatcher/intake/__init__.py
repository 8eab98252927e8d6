"""Intake: records the requests that arrive in the jobs queue."""
