"""`ETag`, `If-Match` and `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1) of catalog entries."""

import hashlib
import re
from dataclasses import dataclass

from fastapi import Request
from pydantic import BaseModel

from gateway.problems import FaultyRequestError
from modelyard.contract.answers import Fault
from modelyard.contract.errors import ErrorCode, ModelyardError

IF_MATCH, IF_NONE_MATCH = "If-Match", "If-None-Match"
TAGS_PATTERN = r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$'
"""What such a header may hold: `*`, or a list of entity tags."""
TAG_DIGITS = 32
"""Hex digits of an entity tag: 128 bits of a SHA-256."""

_TAGS = re.compile(TAGS_PATTERN.strip("^$"))
_TAG = re.compile(r'(?:W/)?"[!#-~]*"')
_ANY = frozenset("*")


def etag_of(content: BaseModel) -> str:
    """Return the strong entity tag of an answer: it is the same as long as the answer is."""
    digest = hashlib.sha256(content.model_dump_json().encode()).hexdigest()
    return f'"{digest[:TAG_DIGITS]}"'


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The preconditions of one request. A null one is not made, and holds."""

    if_match: frozenset[str] | None
    if_none_match: frozenset[str] | None

    @classmethod
    def of(cls, request: Request) -> "Preconditions":
        """Return the preconditions of a request; raises `FaultyRequestError`."""
        return cls(_tags(request, IF_MATCH), _tags(request, IF_NONE_MATCH))

    @property
    def any(self) -> bool:
        """True if the request has a precondition."""
        return self.if_match is not None or self.if_none_match is not None

    def not_modified(self, etag: str) -> bool:
        """Tell whether a read may be answered with 304: the client has this already."""
        return self.if_none_match is not None and not _none_of(self.if_none_match, etag)

    def check_match(self, etag: str | None) -> None:
        """Raise `precondition_failed` if an entry is not one that `If-Match` names.

        A weak tag never matches there. `etag` is null if there is no entry.
        """
        tags = self.if_match
        if tags is not None and (etag is None or not (tags == _ANY or etag in tags)):
            raise ModelyardError(
                ErrorCode.PRECONDITION_FAILED,
                "There is no such entry." if etag is None else "The entry has changed.",
            )

    def check(self, etag: str | None) -> None:
        """Raise `precondition_failed` if an entry may not be written; as `check_match`."""
        self.check_match(etag)
        if etag is not None and self.not_modified(etag):
            raise ModelyardError(ErrorCode.PRECONDITION_FAILED, "The entry exists.")


def _none_of(tags: frozenset[str], etag: str) -> bool:
    return tags != _ANY and etag not in {tag.removeprefix("W/") for tag in tags}


def _tags(request: Request, header: str) -> frozenset[str] | None:
    values = request.headers.getlist(header)
    if not values:
        return None
    joined = ", ".join(values).strip()
    if not _TAGS.fullmatch(joined):
        message = 'It is `*`, or a list of entity tags such as `"0a1b"`.'
        raise FaultyRequestError([Fault(header=header, message=message)])
    return _ANY if joined == "*" else frozenset(_TAG.findall(joined))
