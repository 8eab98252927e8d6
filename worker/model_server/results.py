"""Parses the JSON results of models: small ones in this process, large ones in the body process.

Parsing 1 MiB of JSON holds Python's lock for up to 0.15 s, and a hundred containers may answer at
once: heartbeats and all other work would wait until every result is parsed.
"""

from dataclasses import dataclass

from modelyard.contract.errors import ErrorCode, ErrorInfo, InvalidRequestError, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from modelyard.contract.strict_json import dump_json, parse_json
from modelyard.process.body_child import Part
from modelyard.process.body_process import LARGE_BODY_BYTES, BodyProcess, BodyProcessError

MODULE = "worker.body_child"
_FIRST_BYTES = 200
"""Bytes of an invalid answer that are quoted in the error."""
_HEADER_CHARS = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """A 2xx answer of a model server, with its whole body."""

    asked: str
    status: int
    content_type: str
    encodings: tuple[str, ...]
    """The content codings of the body; empty if it is not encoded."""
    body: bytes


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

    async def read_reply(self, reply: Reply) -> str:
        """Return the result in a server's answer as `read` does; errors quote the answer."""
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
                "the request forbade it (Accept-Encoding: identity). Make it send plain JSON.",
                **detail,
            )
        if not reply.body.strip():
            raise ModelyardError(
                ErrorCode.BAD_RESULT,
                f"The model server answered {reply.status} to {reply.asked} without content. "
                "A result in JSON was expected.",
                **detail,
            )
        try:
            return await self.read(reply.body)
        except ModelyardError as error:
            if error.code is ErrorCode.BAD_RESULT:
                error.detail.update(
                    detail, body=reply.body[:_FIRST_BYTES].decode("ascii", "backslashreplace")
                )
            raise


def result_of(body: bytes) -> str:
    """Return an answer as compact JSON text; raises `bad_result` and `result_too_large`."""
    try:
        text = dump_json(parse_json(body, max_bytes=MAX_RESULT_BYTES))
    except InvalidRequestError as error:
        if error.code is ErrorCode.BODY_TOO_LARGE:
            raise too_large() from error
        raise ModelyardError(ErrorCode.BAD_RESULT, error.message) from error
    if len(text.encode()) > MAX_RESULT_BYTES:
        raise too_large()
    return text


def too_large() -> ModelyardError:
    """Return the error for a result of more than `MAX_RESULT_BYTES`."""
    return ModelyardError(ErrorCode.RESULT_TOO_LARGE, max_bytes=MAX_RESULT_BYTES)


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
