"""A worker runs the containers of one host: it executes commands and reports their outcomes."""
