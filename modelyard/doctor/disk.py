"""Whether there is room where a service, or its engine, stores what it needs."""

import os
import shutil
from pathlib import Path

from modelyard.contract.capacity.sizes import size_text
from modelyard.doctor.diagnosis import Diagnosis, failure, ok, warning

ABOUT = "disk"
FULL_PART = 0.05
"""What has less than this part free gets a warning."""


def check_room(folder: Path, what: str, *, least: int) -> Diagnosis:
    """Tell whether the disk of a folder, which may not exist yet, has `least` bytes free."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    try:
        room = shutil.disk_usage(there)
    except OSError as error:
        return failure(
            ABOUT, f"{folder} ({what}) can't be looked at: {error.strerror}", "Repair this disk."
        )
    seen = f"{size_text(room.free)} of {size_text(room.total)} free in {folder} ({what})"
    if room.free < least:
        return failure(
            ABOUT, seen, f"Free at least {size_text(least)} there, or move {what} to another disk."
        )
    if room.free < FULL_PART * room.total:
        return warning(ABOUT, seen, "Free some space there before the disk is full.")
    return ok(ABOUT, seen)


def check_writable(folder: Path, what: str, *, setting: str) -> Diagnosis:
    """Tell whether this user may write to a folder, or make it."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ok(ABOUT, f"{folder} ({what}) can be written to")
    return failure(
        ABOUT,
        f"this user may not write to {folder} ({what})",
        f"Let the service's user own {folder}, or set {setting} to a folder of its own.",
    )
