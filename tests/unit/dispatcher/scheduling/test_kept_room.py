"""What is kept for operations: how long, and for whom."""

from dispatcher.scheduling.making_room import KEPT_S, KeptRoom, RoomDecision, Way
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.planning import Crowded
from tests.support.scheduling import operation


class Keeping:
    """Room that is kept, with a clock and operations that wait until they are told not to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: set[str] = set()
        self.room = KeptRoom(lambda: self.now, lambda one: one.operation_id not in self.ended)

    def keep(self, job_id: str, host_id: str) -> None:
        one = Crowded(operation(operation_id=job_id), PlacementRequest(job_id=job_id))
        self.room.follow(one, RoomDecision(Way(0.0, host_id, ("other",))))

    def on(self, host_id: str) -> set[str]:
        return {one.job_id for one in self.room.on(host_id)}


def test_room_is_kept_on_the_host_where_it_was_made_last() -> None:
    keeping = Keeping()
    keeping.keep("a", "h1")
    keeping.keep("b", "h1")
    keeping.keep("a", "h2")
    assert (keeping.on("h1"), keeping.on("h2")) == ({"b"}, {"a"})
    assert sorted(keeping.room.waiting_on({"h1", "h2", "h3"})) == ["a", "b"]


def test_room_is_kept_until_some_time_after_the_last_look() -> None:
    keeping = Keeping()
    keeping.keep("a", "h")
    keeping.now = KEPT_S / 2
    keeping.keep("b", "h")
    keeping.keep("c", "h")
    keeping.keep("a", "h")
    keeping.now = KEPT_S
    assert keeping.on("h") == {"a", "b", "c"}
    keeping.keep("c", "h")
    keeping.now = KEPT_S * 1.5
    assert keeping.on("h") == {"c"}


def test_nothing_is_kept_for_what_does_not_wait_any_more_or_can_not_be_helped() -> None:
    keeping = Keeping()
    for job_id in "abc":
        keeping.keep(job_id, "h")
    keeping.ended.add("a")
    assert sorted(keeping.room.waiting_on(["h"])) == ["b", "c"]
    keeping.room.follow(
        Crowded(operation(operation_id="b"), PlacementRequest(job_id="b")), RoomDecision()
    )
    keeping.room.give_up("never kept")
    assert keeping.on("h") == {"c"}
