"""Scheduling: order within a job, placement on a host, commands to workers."""
