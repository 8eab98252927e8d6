"""A part of a round does all its work, never more than so much at once."""

import asyncio

from bench.containers.rounds import AT_ONCE, seconds_of


async def test_all_work_is_done_as_much_at_once_as_allowed_and_each_job_once() -> None:
    jobs, running, most = set[str](), 0, 0

    async def work(job_id: str) -> None:
        nonlocal running, most
        assert job_id not in jobs
        jobs.add(job_id)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await seconds_of(work, 3 * AT_ONCE + 1)

    assert len(jobs) == 3 * AT_ONCE + 1
    assert most == AT_ONCE
