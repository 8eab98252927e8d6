"""What is checked at every single write to the database: I5 and I6."""

import json
from collections import Counter, defaultdict

from modelyard.contract.states import (
    OPERATION_TRANSITIONS,
    JobState,
    OperationState,
    job_sources,
)
from tests.fakes.mongodb_values import Document
from tests.support.invariants.histories import Fact, wrong_between
from tests.support.invariants.sampler import over_capacity


class Watching:
    """Collects what no write should ever have written."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._reported: set[tuple[str, int, int]] = set()
        self.written: dict[tuple[str, int, OperationState], set[int]] = defaultdict(set)
        """By operation, epoch and state, the sequence numbers that the record ever had."""

    def on_reports(self, body: bytes) -> None:
        """Note what workers have reported."""
        for one in json.loads(body)["operations"]:
            self._reported.add((one["operation_id"], one["epoch"], one["seq"]))

    def on_write(self, collection: str, before: Document | None, after: Document) -> None:
        """Judge one write."""
        if collection == "operations":
            fact = _fact(after)
            self.written[after["_id"], fact.epoch, fact.state].add(fact.seq)
            if fact.seq and (after["_id"], fact.epoch, fact.seq) not in self._reported:
                self.wrong.append(f"I6: {after['_id']} is as nobody has reported it: {fact}")
        if collection == "hosts":
            self.wrong += (f"I5: {sentence}" for sentence in _host(after))
        elif collection == "operations" and before is not None:
            self.wrong += (f"I6: {sentence}" for sentence in _operation(before, after))
        elif collection == "jobs" and before is not None:
            self.wrong += (f"I6: {sentence}" for sentence in _job(before, after))


def _host(host: Document) -> list[str]:
    if "slots" not in host:
        return []
    held = Counter(one["job_id"] for one in host["reservations"])
    twice = [f"{host['_id']} holds two reservations of {job}" for job, n in held.items() if n > 1]
    return [*over_capacity(host), *twice]


def _operation(before: Document, after: Document) -> list[str]:
    key = str(after["_id"])
    was, is_now = OperationState(before["state"]), OperationState(after["state"])
    wrong = []
    sentence = wrong_between(key, _fact(before), _fact(after))
    if sentence:
        wrong.append(sentence)
    if was is not is_now and is_now not in OPERATION_TRANSITIONS[was]:
        wrong.append(f"{key} went from {was} to {is_now}")
    if was.terminal and before != after:
        changed = sorted(name for name in after if after[name] != before.get(name))
        # That its key came again with another request may be found out at any time.
        if set(changed) - {"line", "payload_mismatch"}:
            wrong.append(f"{key} had ended as {was} and was written again: {changed}")
    if is_now is OperationState.DISPATCHED is not was and after["epoch"] != before["epoch"] + 1:
        wrong.append(f"{key} was dispatched without a new epoch")
    back = was is OperationState.RUNNING and is_now is OperationState.QUEUED
    if back and _attempts_over(after) != _attempts_over(before) + 1:
        wrong.append(f"{key} went back to the queue and no failure or return was counted")
    if after["open"] is is_now.terminal:
        wrong.append(f"{key} is {is_now} and open is {after['open']}")
    return wrong


def _attempts_over(operation: Document) -> int:
    return int(operation.get("failures", 0)) + int(operation.get("returns", 0))


def _job(before: Document, after: Document) -> list[str]:
    key = after["_id"]
    was, is_now = JobState(before["state"]), JobState(after["state"])
    wrong = []
    if was not in job_sources(is_now):
        wrong.append(f"job {key} went from {was} to {is_now}")
    if after["generation"] < before["generation"]:
        wrong.append(f"job {key} fell back to generation {after['generation']}")
    if after["version"] <= before["version"] and before != after:
        wrong.append(f"job {key} was written without a new version")
    if is_now.live and not after.get("host_id"):
        wrong.append(f"job {key} is {is_now} without a host")
    return wrong


def _fact(document: Document) -> Fact:
    return Fact(document["epoch"], document["seq"], OperationState(document["state"]))
