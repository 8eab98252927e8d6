"""The first API key of a stack, made as an operator makes it: by `modelyard keys bootstrap`."""

from __future__ import annotations

import os
import subprocess
import sys

from deploy.local.errors import StartFailed

_PATIENCE_S = 30.0
_VALID_FOR = "1h"
"""Longer than any demonstration. On a MongoDB that was given the key outlives the stack."""


def bootstrap_key(mongo_url: str) -> str:
    """Return a new admin key that the database at `mongo_url` knows.

    Raises `StartFailed` with what the command said.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    command = ["keys", "bootstrap", "--name", "local stack", "--expires", _VALID_FOR, "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *command],
        env={**inherited, "MODELYARD_MONGO_URL": mongo_url},
        capture_output=True,
        check=False,
        text=True,
        timeout=_PATIENCE_S,
    )
    if done.returncode:
        raise StartFailed(f"The first API key could not be made: {done.stderr.strip()}")
    return done.stdout.strip()
