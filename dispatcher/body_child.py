"""`python -m dispatcher.body_child`: the child process that parses a dispatcher's large messages.

Parsing a large body takes long enough to stall the event loop, so another process does it.
"""

import json
from collections.abc import Iterator

from dispatcher.intake import listed as lists
from dispatcher.intake.decode import decode
from dispatcher.intake.decoder import pack
from modelyard.process.body_child import Part, serve


def decoded(
    body: bytes, *, message_type: str | None, key: str, replay: str | None
) -> Iterator[Part]:
    """Yield the operations in a message of the jobs queue."""
    yield from pack(decode(body, message_type=message_type, key=key, replay=replay))


def listed(body: bytes, *, name: str) -> Iterator[Part]:
    """Yield the objects in the list `name` of a message."""
    yield json.dumps({"listed": lists.listed(body, name)}).encode(), b""


if __name__ == "__main__":
    serve({"decode": decoded, "listed": listed})
