"""Locality: on which hosts a container starts without fetching its image or dataset first. Pure."""

from collections.abc import Sequence

from modelyard.contract.capacity.ledger import Room
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.store.records import HostRecord

IMAGE, DATASET = "image", "dataset"


def nearest(
    fitting: Sequence[tuple[HostRecord, Room]], need: PlacementRequest
) -> list[tuple[HostRecord, Room]]:
    """Return the hosts on which a container would start soonest, of those that fit.

    Those that have its image and its dataset; if there is none, those that have its image; else
    all of them. How long a pull takes is not measured, so hosts are compared by this order alone.
    """
    with_image = [one for one in fitting if need.image in one[0].images]
    if need.dataset is None or not with_image:
        return with_image or list(fitting)
    return [one for one in with_image if need.dataset in one[0].datasets] or with_image


def to_fetch(host: HostRecord, need: PlacementRequest) -> tuple[str, ...]:
    """Return what a host does not have at hand for a container, as far as its worker tells."""
    missing = [IMAGE] if need.image and need.image not in host.images else []
    if need.dataset is not None and need.dataset not in host.datasets:
        missing.append(DATASET)
    return tuple(missing)
