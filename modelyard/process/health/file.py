"""The health file: its process touches it while it works, so its age tells whether it does."""

from pathlib import Path

import structlog

log = structlog.get_logger(__name__)


class HealthFile:
    """A file whose time of change is the last moment at which its process was seen to work."""

    def __init__(self, path: str | None) -> None:
        """With None there is no file, and `beat` does nothing."""
        self._path = None if path is None else Path(path)
        self._failing = False

    def beat(self) -> None:
        """Touch the file. A file that can't be written is logged once; the process goes on."""
        if self._path is None:
            return
        try:
            self._path.touch()
        except OSError as error:
            if not self._failing:
                log.warning("health.not_written", file=str(self._path), error=repr(error))
            self._failing = True
        else:
            self._failing = False
