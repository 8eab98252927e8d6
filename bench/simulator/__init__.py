"""A simulator of fleets: the dispatcher's own rules over made-up traces, with its own clock."""
