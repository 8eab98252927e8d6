"""One incarnation of the worker: boot, commands in, reports out, heartbeats and lease."""
