"""Logs: one JSON object a line on stderr, with ids, never with inputs, results or secrets.

On a terminal the same events are printed for people.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

MAX_VALUE_CHARS = 2_000
MAX_TRACEBACK_CHARS = 20_000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that begin a new line, move the cursor, or reverse the direction of text."""
_PLAIN = (int, float, bool, type(None))


def setup_logging(
    process: str, *, level: LogLevel = "info", log_format: LogFormat = "auto", **bound: str
) -> None:
    """Route structlog and the standard library's logging to stderr.

    Every line contains `process` and `bound` (such as `host_id`).
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape_control_characters,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, renderer],
        # Not by way of the standard library, which takes as long again for each line.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        # Events below the level cost nothing; most requests log only those.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        ),
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Modelyard logs the retries of these libraries itself, once a streak of failures.
    for chatty in ("aio_pika", "aiormq", "pymongo", "httpx2", "httpcore2", "asyncio"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    structlog.contextvars.bind_contextvars(process=process, **bound)


def _escape_control_characters(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Keep forged lines and terminal escapes out: values are one line and of bounded length.

    A traceback has lines. Each of them is indented, so that none can pass for a line of the log.
    """
    for key, value in event.items():
        if key == "exception" and isinstance(value, str):
            lines = value[:MAX_TRACEBACK_CHARS].split("\n")
            event[key] = "\n".join(f"    {_CONTROL.sub(_escaped, line)}" for line in lines)
        elif isinstance(value, str):
            event[key] = _CONTROL.sub(_escaped, value[:MAX_VALUE_CHARS])
        elif not isinstance(value, _PLAIN):
            shown = repr(value)
            if len(shown) > MAX_VALUE_CHARS or _CONTROL.search(shown):
                event[key] = _CONTROL.sub(_escaped, shown[:MAX_VALUE_CHARS])
    return event


def _escaped(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
