"""The containers of jobs on this host, from their plan to their removal."""
