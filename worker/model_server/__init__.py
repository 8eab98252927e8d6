"""The HTTP side of a container: requests to its model server, probes, profiles and templates."""
