"""A process that is to end does, also while one of its threads hangs."""

import subprocess
import sys

import pytest

from modelyard.process.shutdown import find_error

HANGING = """
import threading
from modelyard.process import shutdown

shutdown.EXIT_S = shutdown.LEFT_OVERS_S = 0.1
threading.Thread(target=threading.Event().wait).start()  # as a driver's that nobody answers
shutdown.ProcessExit().{how}
"""


@pytest.mark.parametrize(
    ("how", "code"), [("begin()", 1), ("now()", 1), ("soon(0)", 0), ("soon(1)", 1)]
)
def test_a_process_with_a_thread_that_hangs_ends(how: str, code: int) -> None:
    program = HANGING.format(how=how)
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=20, check=False, capture_output=True
    )
    assert b"Traceback" not in ended.stderr
    assert ended.returncode == code


def test_an_error_is_found_in_the_groups_that_tasks_end_with() -> None:
    wanted = KeyError("k")
    group = ExceptionGroup("outer", [ValueError(), ExceptionGroup("inner", [OSError(), wanted])])
    assert find_error(group, KeyError) is wanted
    assert find_error(wanted, KeyError) is wanted
    assert find_error(group, ZeroDivisionError) is None
