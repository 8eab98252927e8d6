"""Logs: what comes from outside stays one value of one line, whoever reads it."""

import json
import subprocess
import sys
import textwrap

import pytest

from modelyard.process.logging import MAX_TRACEBACK_CHARS, MAX_VALUE_CHARS

FORGED = "ok\r\n2026-01-01 [info] host.online\x1b[31m\x1b]0;title\x07\x00\x9b2J\u2028\u202eback"
"""A new line, colours, a terminal's title, a cleared screen, a line that reads backwards."""

PROGRAM = """
    import logging, sys
    import structlog
    from modelyard.process.logging import setup_logging

    class Odd:
        def __repr__(self):
            return FORGED

    FORGED = {forged!r}
    setup_logging("test", log_format=sys.argv[1])
    log = structlog.get_logger("a")
    log.warning(FORGED, value=FORGED, many=[FORGED, {{FORGED: FORGED}}], odd=Odd())
    log.warning("long", value="x" * 100_000, many=["y" * 100_000], number=2**64)
    logging.getLogger("b").warning("foreign %s", FORGED)
    try:
        raise ValueError(FORGED + "z" * 100_000)
    except ValueError:
        log.exception("failed")
        logging.getLogger("b").exception("failed too")
"""


def said(log_format: str) -> str:
    program = textwrap.dedent(PROGRAM).format(forged=FORGED)
    done = subprocess.run(
        [sys.executable, "-c", program, log_format], capture_output=True, check=True
    )
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_nothing_that_is_logged_moves_the_cursor_or_begins_a_line(log_format: str) -> None:
    written = said(log_format)
    own_colours = written.replace("\x1b[", "") if log_format == "text" else written
    for sign in "\r\x07\x00\x9b\u2028\u202e":
        assert sign not in written
    assert "\x1b]" not in written
    assert "\x1b[31m\x1b]" not in written
    assert "\x1b" not in own_colours
    forged = [line for line in written.splitlines() if line.startswith("2026-01-01 [info]")]
    assert forged == []


def test_a_line_is_one_event_with_its_values() -> None:
    events = [json.loads(line) for line in said("json").splitlines()]
    first, long, foreign, failed, failed_too = events
    assert first["value"] == first["event"]
    assert first["value"].startswith(r"ok\r\n2026-01-01 [info] host.online\x1b[31m")
    assert first["value"].endswith(r"\u2028\u202eback")
    assert "\n" not in first["odd"]
    assert foreign["event"].startswith(r"foreign ok\r\n2026")
    assert (len(long["value"]), len(long["many"])) == (MAX_VALUE_CHARS, MAX_VALUE_CHARS)
    assert long["number"] == 2**64
    for one in (failed, failed_too):
        assert len(one["exception"]) < MAX_TRACEBACK_CHARS * 2
        assert all(line.startswith("    ") for line in one["exception"].split("\n"))
