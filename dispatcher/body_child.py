"""`python -m dispatcher.body_child`: the child process that parses a dispatcher's large messages.

Parsing a large body takes long enough to stall the event loop, so another process does it.
"""

import json
from collections.abc import Iterator
from typing import Unpack

from dispatcher.intake import listed as lists
from dispatcher.intake.decode import DecodeArguments, decode_packed
from dispatcher.intake.decoder import pack
from modelyard.process.body_child import Part, serve


def decoded(
    body: bytes, *, content_encoding: str | None, **arguments: Unpack[DecodeArguments]
) -> Iterator[Part]:
    """Yield the operations in a message of the jobs queue."""
    yield from pack(decode_packed(body, content_encoding, **arguments))


def listed(body: bytes, *, name: str) -> Iterator[Part]:
    """Yield the objects in the list `name` of a message."""
    yield json.dumps({"listed": lists.listed(body, name)}).encode(), b""


if __name__ == "__main__":
    serve({"decode": decoded, "listed": listed})
