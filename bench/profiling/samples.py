"""From the samples of one process to a table of functions and modules; no I/O.

A line of `py-spy record --format raw --threads` is a stack and how often it was seen:
`thread (71): MainThread;main (gateway/service.py:12);get (asyncio/queues.py:149) 3`. The first
frame names the thread, each other one a function, with its file and its line; what a function calls
comes after it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Stacks = Counter[tuple[str, ...]]
"""How often each stack was seen; a stack is the kind of thread, then the functions."""

MOST_LINES = 25
_LEAST_SHARE = 0.01
"""Kinds of threads with less than this share of all samples have no tables of their own."""
_THREAD = re.compile(r"thread \((?:0x)?[0-9a-fA-F]+\)(?:: (?P<name>.+))?")
_NUMBER = re.compile(r"[-_ ]?\d+$")
_FILE = re.compile(r" \((?P<file>[^()]*?)(?::\d+)?\)$")
_UNNAMED = "a thread without a name"


def parse(raw: str) -> Stacks:
    """Read what py-spy wrote; threads that differ in a number at the end count as of one kind.

    A line that is no stack is left out.
    """
    stacks: Stacks = Counter()
    for line in raw.splitlines():
        frames, _, count = line.rpartition(" ")
        if frames and count.isdecimal():
            thread, *functions = frames.split(";")
            stacks[_kind(thread), *functions] += int(count)
    return stacks


def module_of(function: str) -> str:
    """Return the file of a function; the whole frame if it names none."""
    found = _FILE.search(function)
    return found["file"] if found else function


def table(title: str, stacks: Stacks) -> str:
    """Return a text with the shares of all samples: of threads, then of functions and modules.

    The share of a function's own is of samples in which it was the innermost one; the other is of
    samples in which it, or something that it has called, was running.
    """
    samples = stacks.total()
    lines = [title, f"{samples:,} samples; all shares are of these.", ""]
    threads = Counter[str]()
    for (thread, *_), count in stacks.items():
        threads[thread] += count
    lines += [f"{_percent(count, samples)}  {thread}" for thread, count in threads.most_common()]
    for thread, count in threads.most_common():
        if count >= _LEAST_SHARE * samples:
            of_thread = Counter({one[1:]: n for one, n in stacks.items() if one[0] == thread})
            lines += _ranking(f"{thread}: functions", of_thread, samples, str)
            lines += _ranking(f"{thread}: modules", of_thread, samples, module_of)
    return "\n".join(lines) + "\n"


def _ranking(
    title: str, stacks: Stacks, samples: int, label: Callable[[str], str]
) -> Iterator[str]:
    own, whole = Counter[str](), Counter[str]()
    for functions, count in stacks.items():
        labels = [label(one) for one in functions]
        own.update(dict.fromkeys(labels[-1:], count))
        whole.update(dict.fromkeys(labels, count))
    yield from ("", title, "    own     all")
    for name, count in own.most_common(MOST_LINES):
        yield f"{_percent(count, samples)} {_percent(whole[name], samples)}  {name}"


def _kind(thread: str) -> str:
    found = _THREAD.fullmatch(thread)
    name = found["name"] if found else thread
    return _NUMBER.sub("", name or "") or _UNNAMED


def _percent(count: int, samples: int) -> str:
    return f"{100 * count / samples:5.1f} %"
