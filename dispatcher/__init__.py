"""The dispatcher records requests, places them on hosts and records the workers' reports."""
