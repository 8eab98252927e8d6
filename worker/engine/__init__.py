"""What a worker needs of a container engine: the protocol, and what containers are asked for."""
