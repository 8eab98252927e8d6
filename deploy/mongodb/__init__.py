"""MongoDB for deploy/compose.yaml."""
