"""`python -m modelyard.process.health.check`: exits with 0 if a process works, else with 1.

For health checks of containers, which have neither curl nor a shell to rely on. Only the standard
library: the check runs every few seconds.
"""

import argparse
import http
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

URL_S = 4.0
"""Seconds in which a URL has to answer."""


def file_fault(path: str, within_s: float) -> str | None:
    """Return what is wrong with a health file; None if it was touched within `within_s` seconds."""
    try:
        touched_at = os.stat(path).st_mtime  # noqa: PTH116 - pathlib takes long to import
    except OSError as error:
        return f"{path}: {error.strerror}"
    age_s = time.time() - touched_at
    if age_s > within_s:
        return f"{path}: touched {age_s:.0f} s ago, expected within {within_s:g} s"
    return None


def url_fault(url: str) -> str | None:
    """Return what is wrong with a URL; None if it answers 200. Proxies are not used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=URL_S) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError as error:
        return f"{url}: {error}"
    return None if status == http.HTTPStatus.OK else f"{url}: {status}"


def main(argv: Sequence[str] | None = None) -> int:
    """Check a health file or a URL; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="modelyard.process.health.check", description="Checks whether a process works."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--file", help="the process's MODELYARD_HEALTH_FILE")
    what.add_argument("--url", help="a URL that answers 200 while the process works")
    parser.add_argument(
        "--within", type=float, default=30.0, help="most seconds since the file was touched"
    )
    options = parser.parse_args(argv)
    if options.url is not None and not options.url.startswith(("http://", "https://")):
        parser.error("--url has to begin with http:// or https://")
    fault = (
        file_fault(options.file, options.within)
        if options.file is not None
        else url_fault(options.url)
    )
    if fault is not None:
        sys.stderr.write(f"{fault}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
