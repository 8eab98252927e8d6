"""The answer of a model server to a probe, and what it proves."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

NOBODY_LISTENS = (
    "Nothing listens on that port of the container, or only on its loopback interface: the server "
    "has to listen on 0.0.0.0 and on the port of the model's catalog entry."
)

NOTHING_AT_THE_PATH = (
    "The path comes from the model's catalog entry: from `hooks.alive` or `hooks.ready`, or with "
    "`open-inference` from `model_name`."
)
_NOT_FOUND = 404
_QUOTED_CHARS = 200
"""Characters of a body that are quoted in a sentence; the detail has more."""


class ProbeVerdict(StrEnum):
    """The three answers to a probe. Only the first two prove anything."""

    YES = "yes"
    """A 2xx came in time."""
    NO = "no"
    """Another status came in time, or the kernel refused the connection because nothing listens.
    408, 429, 502 and 504 do not count as NO: with them a proxy says that it did not reach the
    model."""
    SILENT = "silent"
    """Nothing is known. No answer came in time; or the connection could not be made, or was
    accepted and then closed or broken; or the answer was not HTTP, or exceeded a limit; or a proxy
    did not reach the model (408, 429, 502, 504). A healthy server is silent while its only thread
    works on a request that nobody waits for any more, and to a worker that is itself slow. Docker's
    proxy for published ports closes a connection if nothing listens behind it; a server may close
    one too, so this proves nothing either."""


def asked_of(path: str, port: int | None) -> str:
    """Return for people what a probe asks; `port` is the one inside the container."""
    return f"GET {path} on the container's port {port}"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe."""

    answer: ProbeVerdict
    heard: str
    """What came back, as text for people: the status, or why there was no answer."""
    status: int | None = None
    nobody_listens: bool = False
    """True if it seems that nothing listens on the port."""
    body: str = ""
    """The beginning of the body that came with the status, unless the answer is YES."""

    def with_body(self, body: str) -> Self:
        """Return this result with the beginning of its body."""
        return replace(self, body=body)

    def sentences(self, asked: str) -> str:
        """Return for people what was asked, what came back, and what to look at.

        `asked` is what `asked_of` returned.
        """
        said = f"The probe was {asked}, and the last answer was: {self.heard.removesuffix('.')}."
        if self.body:
            said += f" Its body begins with: {self.body[:_QUOTED_CHARS]!r}."
        return f"{said} {self.hint}".rstrip()

    def detail(self, asked: str) -> dict[str, object]:
        """Return the same as the detail of an error; `body` is left out if there was none."""
        detail: dict[str, object] = {"asked": asked, "last_answer": self.heard}
        return detail | {"body": self.body} if self.body else detail

    @property
    def hint(self) -> str:
        """What to look at in the model's catalog entry; empty if nothing points there."""
        if self.nobody_listens:
            return NOBODY_LISTENS
        return NOTHING_AT_THE_PATH if self.status == _NOT_FOUND else ""
