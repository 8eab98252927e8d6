"""What a model server says when it is asked whether something holds, and what that proves."""

from dataclasses import dataclass
from enum import StrEnum

NOBODY_LISTENS = (
    "Nothing listens on that port of the container, or only on its loopback: the server has to "
    "listen on 0.0.0.0 and on the port of the model's catalog entry."
)


class ProbeVerdict(StrEnum):
    """The three answers to a probe. Only the first two prove anything."""

    YES = "yes"
    """A 2xx came in time: it holds."""
    NO = "no"
    """It does not hold: another status came in time, or the kernel refused the connection, so that
    nothing listens. Not counted as NO are 408, 429, 502 and 504, with which a front says that it
    did not ask the model."""
    SILENT = "silent"
    """Nothing is known: no answer in time, a connection that was taken and then closed or broken,
    something that is not HTTP, a flood that was cut off, a front that did not ask the model (408,
    429, 502, 504), a connection that we could not make. A server with one thread that works on a
    request which nobody waits for any more is silent and well; so is any server to a worker that
    is itself late. Docker's proxy for published ports closes a connection when nothing listens
    behind it: that can't be told from a server that closes it, and so proves nothing either."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One answer."""

    answer: ProbeVerdict
    heard: str
    """What came back, for people: a status, or how nothing came."""
    status: int | None = None
    nobody_listens: bool = False
    """True if it looks as if nothing listened behind the port."""
