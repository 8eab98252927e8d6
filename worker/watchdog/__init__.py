"""The watchdog: a process that stops containers when their worker can't."""
