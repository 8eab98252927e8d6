"""Benchmarks: Modelyard and its peers on the same servers, and the goals for its speed."""
