"""Commands about this machine, which need no gateway: its configuration, and the doctor."""
