"""Scheduling: passes over the jobs, their lines in memory, room for models, commands to workers."""
