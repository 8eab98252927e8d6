"""Locality: on which hosts a container starts without fetching its image or dataset first. Pure."""

from collections.abc import Iterator

from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.survey import Rows, Table
from modelyard.store.records import HostRecord

IMAGE, DATASET = "image", "dataset"


def nearest(table: Table, fitting: Rows, need: PlacementRequest) -> Iterator[Rows]:
    """Return the hosts that fit in groups: those on which a container would start soonest first.

    Those that have its image and its dataset, then those that have its image, then the others. How
    long a pull takes is not measured, so hosts are compared by this order alone.
    """
    image = table.with_image(need.image) if need.image else frozenset[int]()
    if not image:
        yield fitting
        return
    having = [row for row in fitting if row in image]
    if need.dataset is not None:
        dataset = table.with_dataset(need.dataset)
        yield [row for row in having if row in dataset]
        having = [row for row in having if row not in dataset]
    yield having
    yield [row for row in fitting if row not in image]


def to_fetch(host: HostRecord, need: PlacementRequest) -> tuple[str, ...]:
    """Return what a host does not have at hand for a container, as far as its worker tells."""
    missing = [IMAGE] if need.image and need.image not in host.images else []
    if need.dataset is not None and need.dataset not in host.datasets:
        missing.append(DATASET)
    return tuple(missing)
