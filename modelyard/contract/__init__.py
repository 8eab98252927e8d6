"""What processes and clients agree on: states, messages, the catalog, wire names and errors.

Nothing in this package does I/O; it imports pydantic and the standard library only.
"""
