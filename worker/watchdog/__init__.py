"""The watchdog: a small process that stops containers when their worker can't do it."""
