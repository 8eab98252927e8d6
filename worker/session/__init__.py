"""One incarnation of the worker: boot, commands, reports, heartbeats, inventories and the lease."""
