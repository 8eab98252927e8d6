"""A model server for benchmarks, which answers at once."""
