# ruff: noqa: N818 - the common base says that they are errors
"""What can go wrong while the local stack starts, one sentence each."""

from __future__ import annotations


class StackError(Exception):
    """Ends a command of the local stack with a message that a person can act on."""


class StartFailed(StackError):
    """A process exited, or did not answer in time; the message ends with the end of its log."""


class InUse(StackError):
    """The folder belongs to a process that still runs under a live owner."""


class CannotProvide(StackError):
    """Something is missing that this machine or user cannot install by itself."""


class InstallFailed(StackError):
    """The package manager refused; the message ends with the end of its output."""
