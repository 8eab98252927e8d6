# ruff: noqa: N818 - the name of the base class says that they are errors
"""Errors of the local stack."""

from __future__ import annotations


class StackError(Exception):
    """Ends a command of the local stack with a message that a person can act on."""


class StartFailed(StackError):
    """A process exited, or did not answer in time; the message ends with the end of its log."""


class InUse(StackError):
    """The folder belongs to a process that still runs under a live owner."""


class CannotProvide(StackError):
    """A program is missing that this command cannot install on this machine or as this user."""


class InstallFailed(StackError):
    """The package manager failed; the message ends with the end of its output."""
