"""Reads what a pass needs beside lines and hosts: for the dispatcher, and for who explains it."""

from collections.abc import Collection, Sequence

from modelyard.process.tasks import together
from modelyard.scheduling.ordering import CatalogEntries
from modelyard.scheduling.planning import URGENT, catalog_names
from modelyard.store import Store
from modelyard.store.records import JobLine


async def entries_of(store: Store, lines: Sequence[JobLine]) -> CatalogEntries:
    """Return the catalog entries that these lines name; raises `StoreUnavailableError`."""
    names = frozenset[tuple[str, str]]().union(*map(catalog_names, lines))
    models, datasets = await together(
        store.models.get_many(name for kind, name in names if kind == "model"),
        store.datasets.get_many(name for kind, name in names if kind == "dataset"),
    )
    return CatalogEntries(models, datasets)


async def urgent_jobs(store: Store, *, besides: Collection[str]) -> list[str]:
    """Return the jobs that join a pass which gives capacity away, because they wait for a host.

    Raises `StoreUnavailableError`.
    """
    waiting = await store.operation_queries.without_host(limit=URGENT)
    return sorted({one.job_id for one in waiting if one.job_id}.difference(besides))
