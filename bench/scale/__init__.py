"""`make bench-scale`: many hosts, many waiting operations, and a dispatcher that dies."""
