"""Maintenance: repairs, retries and relocations, all that keeps work going after a failure."""
