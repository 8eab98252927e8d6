"""The order in which operations get their places in line; pure functions."""

from collections.abc import Mapping, Sequence

from modelyard.store.operation_queries import KnownOperation


def in_order(
    brought: Mapping[str, str | None],
    known: Mapping[str, KnownOperation],
    unbrought: Sequence[KnownOperation],
) -> list[str]:
    """Return the ids of the operations that get places in line now, in their order.

    `brought` maps the operations of this batch to their jobs, in the broker's order. `unbrought`
    are recorded operations of the same jobs whose messages intake has not received. For each
    operation of the batch:

    - It has a place already (a redelivery): it keeps it, and nothing goes before it.
    - The gateway has recorded it: unbrought operations of its job that were recorded earlier go
      before it. They were not published before it, or the broker would have delivered them first.
    - The gateway has not recorded it yet, so its age is unknown: unbrought operations of its job
      whose publish was never confirmed go before it.

    All other unbrought operations wait for their own messages.
    """
    order: list[str] = []
    left = sorted(unbrought, key=lambda one: one.accepted)
    for key, job_id in brought.items():
        there = known.get(key)
        if there is not None and there.line is not None:
            continue
        ahead = [one for one in left if one.job_id == job_id and _goes_before(one, there)]
        order += [one.operation_id for one in ahead]
        left = [one for one in left if one not in ahead]
        order.append(key)
    return order


def overtaking(
    brought: Mapping[str, str | None],
    known: Mapping[str, KnownOperation],
    unbrought: Sequence[KnownOperation],
) -> set[str]:
    """Return the jobs with an operation in this batch that an unbrought one has to go before."""
    by_job: dict[str | None, list[KnownOperation]] = {}
    for one in unbrought:
        by_job.setdefault(one.job_id, []).append(one)
    return {
        job_id
        for key, job_id in brought.items()
        if job_id is not None
        and any(_goes_before(one, known.get(key)) for one in by_job.get(job_id, ()))
    }


def _goes_before(unbrought: KnownOperation, there: KnownOperation | None) -> bool:
    return unbrought.unpublished if there is None else unbrought.accepted < there.accepted
