"""The first pass over new operations: one write records them, puts them in line and starts them.

An inference that may run at once is dispatched by the write that records it. What a crash leaves
behind:

- before the write: nothing happened; the broker delivers the message again;
- after it: the operations are in line, some of them DISPATCHED. The message is delivered again and
  finds them there. A command that was not published is published by the sweep.

An operation that the broker did not confirm may have to go before those of this batch. The write
finds out whether there is one; if so, the operations of its job are withdrawn before any worker
hears of them.
"""

from collections.abc import Iterable, Mapping, Sequence

from dispatcher.events import EventLog, operation_event
from dispatcher.intake.positions import Positions
from dispatcher.scheduling.commands import CommandPublisher
from dispatcher.scheduling.fleet import Fleet
from dispatcher.scheduling.lines import Lines
from modelyard.contract.states import VERB_RULES, Liveness
from modelyard.process.crash_points import crash_point
from modelyard.scheduling.ordering import shared_starts
from modelyard.store import Store
from modelyard.store.operation_writes import DispatchClaim, IntakeEntry
from modelyard.store.records import HostRecord, JobRecord, NewOperation


class FirstPass:
    """Takes new operations in, and dispatches those that may start."""

    def __init__(
        self,
        store: Store,
        event_log: EventLog,
        commands: CommandPublisher,
        *,
        lines: Lines,
        fleet: Fleet,
        positions: Positions,
    ) -> None:
        self._store = store
        self._event_log = event_log
        self._commands = commands
        self._lines = lines
        self._fleet = fleet
        self._positions = positions

    async def take(self, new: Sequence[NewOperation]) -> list[NewOperation]:
        """Take operations in, in this order; return those whose places are not that simple.

        These are not in line: they are recorded already, or others of their jobs go before them.
        Raises `StoreUnavailableError`.
        """
        if any(one.accepted is None for one in new):
            await self._store.time()  # what no gateway has accepted is accepted now
        new = self._store.operations.accepted_now(new)
        jobs = sorted({one.job_id for one in new if one.job_id and one.rejection is None})
        await self._hold(jobs)
        # Only what shares its job may start here, so only then hosts matter.
        starting = any(one.verb and VERB_RULES[one.verb].shared for one in new)
        hosts = await self._fleet.hosts() if starting else {}
        places = await self._positions.take(len(new))
        with self._lines.entering(jobs):
            # Up to the write nothing is awaited, so what is decided holds for the lines of now.
            entries = self._entries(new, places, hosts)
            held = {one.job_id: one for one in self._jobs_of(entries)}
            entered = await self._store.operations.enter(entries)
            crash_point("dispatcher.intake.after_record")
            left_alone = entered.left_alone
            unclear = {one.job_id or "" for one in new if one.operation_id in left_alone}
            if entered.unpublished:
                before = await self._store.operation_queries.unpublished(jobs)
                unclear |= {one.job_id or "" for one in before}
            back = [
                one
                for one in entries
                if (one.new.job_id or "") in unclear or one.new.operation_id in left_alone
            ]
            if back:
                await self._store.operations.withdraw(
                    one for one in back if one.new.operation_id not in left_alone
                )
                self._lines.forget(unclear)
        in_line = [one for one in entries if one not in back]
        claims = [one.claim for one in in_line if one.claim is not None]
        await self._commands.publish([claim.dispatched for claim in claims], held)
        # What was never QUEUED in the record without being DISPATCHED too has only that event.
        self._event_log.note(
            operation_event(one.claim.dispatched if one.claim else one.new.queued())
            for one in in_line
        )
        return [one.new for one in back]

    async def _hold(self, jobs: Sequence[str]) -> None:
        """Have the jobs in memory, and in the record."""
        read = await self._lines.read(jobs)
        found = {line.job.job_id for line in read.lines} | read.moved
        absent = [job_id for job_id in jobs if job_id not in found]
        if absent:
            await self._lines.ensure(absent)

    def _entries(
        self, new: Sequence[NewOperation], places: Iterable[int], hosts: Mapping[str, HostRecord]
    ) -> list[IntakeEntry]:
        """Put the operations in line in memory, and decide which of them start."""
        lines = dict(zip([one.operation_id for one in new], places, strict=True))
        for one in new:
            if one.rejection is None:
                self._lines.append(one.queued(lines[one.operation_id]))
        claims: dict[str, DispatchClaim] = {}
        for job_id in dict.fromkeys(one.job_id for one in new if one.rejection is None):
            line = self._lines.line(job_id or "")
            for start in shared_starts(line) if line else ():
                host = hosts.get(start.host_id)
                key = start.operation.operation_id
                if key in lines and host is not None and host.liveness is Liveness.ONLINE:
                    claim = DispatchClaim(
                        start.operation, host.host_id, host.incarnation or "", start.job.generation
                    )
                    self._lines.replace(claim.dispatched)
                    claims[key] = claim
        return [
            IntakeEntry(one, lines[one.operation_id], claims.get(one.operation_id)) for one in new
        ]

    def _jobs_of(self, entries: Iterable[IntakeEntry]) -> Iterable[JobRecord]:
        job_ids = {one.new.job_id or "" for one in entries if one.claim is not None}
        return [line.job for job_id in job_ids if (line := self._lines.line(job_id)) is not None]
