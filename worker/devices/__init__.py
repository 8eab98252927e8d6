"""The host's devices: which there are, and what is measured of them."""
