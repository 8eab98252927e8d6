"""Reports: fences off the workers' stale reports and records the current ones."""
