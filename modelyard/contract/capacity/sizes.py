"""Numbers of bytes as people read them."""

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def size_text(size: int) -> str:
    """Return a number of bytes with the largest unit that it reaches, such as `1.5 GiB`."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def part_text(part: int, whole: int) -> str:
    """Return how much of a number of bytes something is, both in the unit of the whole."""
    for unit, name in _UNITS:
        if whole >= unit:
            return f"{part / unit:.4g}/{whole / unit:.4g} {name}"
    return f"{part}/{whole} bytes"
