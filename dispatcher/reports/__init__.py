"""From the workers' reports into the record, past the fences."""
