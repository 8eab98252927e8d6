"""The commands `modelyard-gateway`, `modelyard-dispatcher` and `modelyard-worker`.

A service is imported only here and by name, so that a command whose extra is not installed says so
in one sentence.
"""

import sys
from importlib import import_module

from modelyard.process.settings import EXIT_WRONG_SETTINGS

_OURS = frozenset({"modelyard", "gateway", "dispatcher", "worker"})


def gateway() -> None:
    """Run a gateway."""
    _start("gateway")


def dispatcher() -> None:
    """Run a dispatcher."""
    _start("dispatcher")


def worker() -> None:
    """Run a worker."""
    _start("worker")


def missing_extra(extra: str, error: ModuleNotFoundError) -> str:
    """Return what to install; raises the error again if the module is one of Modelyard's own."""
    if (error.name or "").partition(".")[0] in _OURS:
        raise error
    return f"{error.name} is not installed: pip install 'modelyard[{extra}]'."


def _start(service: str) -> None:
    try:
        module = import_module(f"{service}.__main__")
    except ModuleNotFoundError as error:
        sys.stderr.write(f"modelyard-{service}: {missing_extra(service, error)}\n")
        raise SystemExit(EXIT_WRONG_SETTINGS) from None
    module.main()
