"""Stand-ins for real parts. Each passes the same conformance suite as the real one."""
