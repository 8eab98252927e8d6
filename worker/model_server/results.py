"""Reads the results of models: JSON is parsed, anything else is kept as it came, with its type.

Parsing 1 MiB of JSON holds Python's lock for up to 0.15 s, and a hundred containers may answer at
once: heartbeats and all other work would wait until every result is parsed. So large results are
parsed in the body process, small ones in this one.
"""

from dataclasses import dataclass

from modelyard.contract.content.media_types import JSON_TYPE, is_json, media_type_of
from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import StoredResult
from modelyard.contract.errors import ErrorCode, ErrorInfo, InvalidRequestError, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from modelyard.contract.strict_json import dump_json, parse_json
from modelyard.process.body_child import Part
from modelyard.process.body_process import LARGE_BODY_BYTES, BodyProcess, BodyProcessError

MODULE = "worker.body_child"
_FIRST_BYTES = 200
"""Bytes of an invalid answer that are quoted in the error."""
_SHOWN_CHARS = 60
"""Characters of it that the error's sentence has."""
_HEADER_CHARS = 200


@dataclass(frozen=True, slots=True)
class LargeResult:
    """More than `MAX_RESULT_BYTES`, of any type, as it came: large JSON is not parsed."""

    content_type: str
    content: bytes


Result = str | ResultContent | LargeResult
"""JSON as compact text, or content of another type."""


KeptResult = str | ResultContent | StoredResult
"""A result as an attempt reports it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A 2xx answer of a model server, with its whole body unless that is `stored`."""

    asked: str
    status: int
    content_type: str
    encodings: tuple[str, ...]
    """The content codings of the body; empty if it is not encoded."""
    body: bytes | bytearray
    stored: StoredResult | None = None
    """The body, if it was large."""


@dataclass(frozen=True, slots=True)
class BatchOutput:
    """What a batch has written as its result."""

    source: str
    """Where, for errors: the path of a file, or the last line of stdout."""
    media_type: str | None
    """What the model's entry says that it is; None: JSON."""
    content: bytes


class ResultReader:
    """Parses the results of one worker; large ones one at a time, in the order of their arrival."""

    def __init__(self) -> None:
        self._process = BodyProcess(MODULE)

    async def aclose(self) -> None:
        """End the body process."""
        await self._process.close()

    async def read(self, body: bytes) -> str:
        """Return a result as `result_of` does.

        Raises `worker_error` if the body process failed; the result may still be valid.
        """
        if len(body) < LARGE_BODY_BYTES:
            return result_of(body)
        try:
            [part] = await self._process.ask("result", {}, body)
        except BodyProcessError as error:
            message = f"The worker could not read the result. {error.message}"
            raise ModelyardError(ErrorCode.WORKER_ERROR, message) from error
        return _unpacked(part)

    async def read_reply(self, reply: Reply) -> KeptResult:
        """Return the result in a server's answer; errors quote the answer.

        Its `Content-Type` says what it is. JSON is parsed, and so is an answer without one.
        """
        detail = {
            "asked": reply.asked,
            "status": reply.status,
            "content_type": reply.content_type[:_HEADER_CHARS],
        }
        if reply.encodings:
            encoded = ", ".join(reply.encodings)[:_HEADER_CHARS]
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                f"The model server encoded its answer to {reply.asked} with {encoded}, although "
                "the request forbade it (Accept-Encoding: identity). Make it send plain content.",
                **detail,
            )
        if reply.stored is not None:
            return reply.stored
        media_type = media_type_of(reply.content_type)
        if not (reply.body.strip() if is_json(media_type) else reply.body):
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                f"The model server answered {reply.status} to {reply.asked} without content. "
                "A result was expected.",
                **detail,
            )
        if not is_json(media_type):
            return ResultContent(content_type=media_type, content=bytes(reply.body))
        said = f"with the type {media_type}" if reply.content_type.strip() else "without a type"
        what = f"The model server's answer to {reply.asked}, {said},"
        return await self._read_json(bytes(reply.body), what, detail)

    async def read_output(self, output: BatchOutput) -> Result:
        """Return the result that a batch has written; errors quote it."""
        media_type = output.media_type or JSON_TYPE
        if len(output.content) > MAX_RESULT_BYTES:
            return LargeResult(media_type, output.content)
        if not is_json(media_type):
            return ResultContent(content_type=media_type, content=output.content)
        detail: dict[str, object] = {"source": output.source, "content_type": media_type}
        return await self._read_json(output.content, f"The result in {output.source}", detail)

    async def _read_json(self, body: bytes, what: str, detail: dict[str, object]) -> str:
        try:
            return await self.read(body)
        except ModelyardError as error:
            if error.code is not ErrorCode.BAD_RESULT:
                raise
            begins = printable(body, _FIRST_BYTES)
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                f"{what} can't be read as JSON. {error.message} It begins with: "
                f"{begins[:_SHOWN_CHARS]}",
                **{**error.detail, **detail, "body": begins},
            ) from error


def printable(content: bytes, most: int) -> str:
    """Return the first `most` bytes as ASCII; all others, and control characters, are escaped."""
    text = content[:most].decode("ascii", "backslashreplace")
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def result_of(body: bytes) -> str:
    """Return JSON as compact text; raises `bad_result` and `result_too_large`."""
    try:
        text = dump_json(parse_json(body, max_bytes=MAX_RESULT_BYTES))
    except InvalidRequestError as error:
        if error.code is ErrorCode.BODY_TOO_LARGE:
            raise too_large() from error
        raise ModelyardError(ErrorCode.BAD_RESULT, error.message) from error
    if len(text.encode()) > MAX_RESULT_BYTES:
        raise too_large()
    return text


def too_large(most: int = MAX_RESULT_BYTES) -> ModelyardError:
    """Return the error for a result of more than `most` bytes."""
    return ModelyardError(ErrorCode.RESULT_TOO_LARGE, max_bytes=most)


def pack(body: bytes) -> Part:
    """Parse a result; return it, or its error, in the form that the body process sends back."""
    try:
        return b"{}", result_of(body).encode()
    except ModelyardError as error:
        return error.info().model_dump_json().encode(), b""


def _unpacked(part: Part) -> str:
    header, text = part
    if header == b"{}":
        return text.decode()
    error = ErrorInfo.model_validate_json(header)
    raise ModelyardError(error.code, error.message, **error.detail)
