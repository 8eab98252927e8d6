"""Health of a process that serves no HTTP: a file that it touches, and a check of its age."""
