"""Why a command did not reach MongoDB, in a sentence for the person who gave it."""

from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pymongo.errors import OperationFailure
from pymongo.uri_parser import parse_uri

from modelyard.contract.errors import StoreUnavailableError

NAMED_BY = "MODELYARD_MONGO_URL, or MODELYARD_MONGO_URL_FILE, names it"


def silent(url: str) -> StoreUnavailableError:
    """Return the error of a server that does not answer; `url` is one that the driver takes."""
    return StoreUnavailableError(f"MongoDB at {_place(url)} does not answer; {NAMED_BY}.")


@contextmanager
def reaching(url: str) -> Generator[None]:
    """Name the server in the failures inside.

    Raises `StoreUnavailableError` if it does not answer, and `ValueError` if it refuses the user.
    """
    try:
        yield
    except StoreUnavailableError as error:
        if isinstance(error.__cause__, OperationFailure):
            raise  # it has answered, and the error says what
        raise silent(url) from error
    except OperationFailure as error:
        said = (error.details or {}).get("errmsg") or error
        raise ValueError(f"MongoDB at {_place(url)} refuses it: {said} {NAMED_BY}.") from error


def _place(url: str) -> str:
    """Return host and port without the password, which is in no part of what is returned."""
    if url.startswith("mongodb+srv"):
        return str(urlsplit(url).hostname)  # the driver would ask a name server
    return ",".join(f"{host}:{port}" for host, port in parse_uri(url)["nodelist"])
