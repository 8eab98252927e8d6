"""What a list of operations costs the database beyond itself."""

from typing import TYPE_CHECKING, cast

from gateway.explaining import operation_views
from tests.support.scheduling import operation

if TYPE_CHECKING:
    from gateway.reading import BoundedReads
    from modelyard.store import Store


class DownReads:
    """Reads of a database that does not answer."""

    async def ask(self, call: object) -> object:
        raise AssertionError(call)


async def test_what_does_not_wait_in_line_is_shown_while_the_database_is_away() -> None:
    records = [
        operation(state="SUCCEEDED"),
        operation(state="RUNNING"),
        operation(line=None),
        operation(waiting_for=("no host is registered",)),
    ]
    reading = cast("BoundedReads", DownReads())
    views = await operation_views(reading, cast("Store", None), records)
    assert [view.waiting_for for view in views] == [(), (), (), ("no host is registered",)]
