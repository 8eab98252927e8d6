"""A model server for tests, which misbehaves on request."""
