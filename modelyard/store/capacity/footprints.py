"""Footprints: what the last loads of each model, image and kind of device took at the most."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from modelyard.contract.capacity.footprints import KEPT_LOADS, Learned
from modelyard.store.connection import MongoConnection
from modelyard.store.records import Document, Record

UNUSED_S = 180 * 86_400
"""Seconds after the last load in which a footprint is forgotten: images come and go."""


class Peak(Record):
    """The most that one load took."""

    load: str
    """The operation that brought the model into memory."""
    memory: int | None = None
    device_memory: int | None = None
    """Bytes on the device on which it took most."""


@dataclass(frozen=True, slots=True)
class FootprintKey:
    """Whose footprint it is."""

    model: str
    image: str
    device: str
    """What the devices are, such as `NVIDIA H100 80GB HBM3`; empty for a model without any."""

    @property
    def id(self) -> str:
        """The key as one text: none of the first two can hold a bar."""
        return f"{self.model}|{self.image}|{self.device}"


class FootprintRecord(Record):
    """What loads of a model with one image took on one kind of device."""

    model: str
    image: str
    device: str = ""
    peaks: tuple[Peak, ...] = ()
    """Of the last loads, at most `KEPT_LOADS`."""
    loads: int = 0
    """All that were measured."""
    last_seen: datetime | None = None

    @property
    def memory(self) -> int | None:
        """Bytes of host memory that the last loads took at the most; None if not measured."""
        return max((one.memory for one in self.peaks if one.memory is not None), default=None)

    @property
    def device_memory(self) -> int | None:
        """Bytes on a device that the last loads took at the most; None if not measured."""
        return max(
            (one.device_memory for one in self.peaks if one.device_memory is not None),
            default=None,
        )


class Footprints:
    """The collection `footprints`. Every method raises `StoreUnavailableError`."""

    def __init__(self, connection: MongoConnection) -> None:
        self._connection = connection
        self._collection = connection.collection("footprints")

    async def learn(self, key: FootprintKey, peak: Peak, *, new_load: bool) -> None:
        """Note what a load took; the same load again only raises its peak.

        `new_load`: false if the load itself was reported before; it is not counted again then,
        even if it is not among those that are kept.
        """
        async with self._connection.answering():
            await self._collection.update_one(
                {"_id": key.id}, [_noted(key, peak, new_load=new_load)], upsert=True
            )

    async def all(self) -> list[FootprintRecord]:
        """Return all footprints."""
        return await self._read({})

    async def of_model(self, model: str) -> Sequence[FootprintRecord]:
        """Return the footprints of a model with each image on each kind of device."""
        return await self._read({"model": model})

    async def of_models(self, models: Sequence[str]) -> Sequence[FootprintRecord]:
        """Return the footprints of several models."""
        return await self._read({"model": {"$in": list(models)}}) if models else []

    async def _read(self, criteria: Document) -> list[FootprintRecord]:
        async with self._connection.answering():
            found = await self._collection.find(criteria).sort("_id", 1).to_list(None)
        return [FootprintRecord.model_validate(document) for document in found]


def _noted(key: FootprintKey, peak: Peak, *, new_load: bool) -> Document:
    """Return the stage that notes a peak in the document as it is when the update is made."""
    kept = {"$ifNull": ["$peaks", []]}
    known = {"$in": [peak.load, {"$map": {"input": kept, "as": "peak", "in": "$$peak.load"}}]}
    higher = {
        name: {"$max": [f"$$peak.{name}", getattr(peak, name)]}
        for name in ("memory", "device_memory")
    }
    is_this = {"$eq": ["$$peak.load", peak.load]}
    raised = {
        "$map": {
            "input": kept,
            "as": "peak",
            "in": {"$cond": [is_this, {"$mergeObjects": ["$$peak", higher]}, "$$peak"]},
        }
    }
    added = {"$concatArrays": [kept, [{"$literal": peak.model_dump()}]]}
    counted = {"$cond": [known, 0, 1 if new_load else 0]}
    return {
        "$set": {
            "model": {"$literal": key.model},
            "image": {"$literal": key.image},
            "device": {"$literal": key.device},
            "peaks": {"$cond": [known, raised, {"$slice": [added, -KEPT_LOADS]}]},
            "loads": {"$add": [{"$ifNull": ["$loads", 0]}, counted]},
            "last_seen": "$$NOW",
        }
    }


def learned_of(records: Iterable[FootprintRecord]) -> dict[tuple[str, str], Learned]:
    """Return what was learned by model and image.

    Host memory counts whatever the devices are, so that the container's own part is the same
    everywhere.
    """
    by_image: dict[tuple[str, str], list[FootprintRecord]] = defaultdict(list)
    for one in records:
        by_image[one.model, one.image].append(one)
    return {
        key: Learned(
            memory=max((one.memory for one in them if one.memory is not None), default=None),
            devices=tuple(
                sorted((one.device, one.device_memory) for one in them if one.device_memory)
            ),
        )
        for key, them in by_image.items()
    }
