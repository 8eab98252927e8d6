"""The Docker Engine, through aiodocker: the only package that imports it."""
