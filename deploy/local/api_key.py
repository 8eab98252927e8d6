"""The first API key of a stack, created as an operator does it: by `modelyard keys bootstrap`."""

from __future__ import annotations

import os
import subprocess
import sys

from deploy.local.errors import StartFailed

_TIMEOUT_S = 30.0


def bootstrap_key(mongo_url: str, valid_for: str) -> str:
    """Create an admin key in the database at `mongo_url`, for a time such as `1h`; return it.

    Raises `StartFailed` with the output of the command.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MODELYARD_")}
    command = ["keys", "bootstrap", "--name", "local stack", "--expires", valid_for, "--force"]
    done = subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *command],
        env={**inherited, "MODELYARD_MONGO_URL": mongo_url},
        capture_output=True,
        check=False,
        text=True,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise StartFailed(f"The first API key could not be created: {done.stderr.strip()}")
    return done.stdout.strip()
