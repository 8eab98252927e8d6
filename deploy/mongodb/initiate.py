"""`python3 initiate.py HOST:PORT`: makes a mongod the only member of a replica set, once.

Runs in an image of Modelyard's, which has a driver; it does nothing to a set that was initiated
before. Exits with 0 once the member accepts writes.
"""

import sys
import time

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

NAME = "rs0"
PATIENCE_S = 90.0
_CALL_MS = 3_000
_ALREADY_INITIATED = 23


def initiate(address: str) -> None:
    """Send the one command; raises `PyMongoError`."""
    # A client of its own: one that was connected before would not know of the set.
    with _client(address) as client:
        members = [{"_id": 0, "host": address}]
        try:
            client.admin.command("replSetInitiate", {"_id": NAME, "members": members})
        except OperationFailure as error:
            if error.code != _ALREADY_INITIATED:
                raise


def takes_writes(address: str) -> bool:
    """Tell whether the member is the primary; raises `PyMongoError`."""
    with _client(address) as client:
        return bool(client.admin.command("hello").get("isWritablePrimary"))


def main() -> int:
    """Initiate and wait; return the exit status."""
    address = sys.argv[1]
    deadline = time.monotonic() + PATIENCE_S
    initiated, fault = False, "it is no primary"
    while time.monotonic() < deadline:
        try:
            if not initiated:
                initiate(address)
                initiated = True
            if takes_writes(address):
                print(f"{address} is the primary of {NAME}")
                return 0
        except PyMongoError as error:
            fault = str(error)
        time.sleep(0.5)
    sys.stderr.write(f"{address}: not ready within {PATIENCE_S:g} s: {fault}\n")
    return 1


def _client(address: str) -> MongoClient[dict[str, object]]:
    return MongoClient(
        f"mongodb://{address}/?directConnection=true",
        serverSelectionTimeoutMS=_CALL_MS,
        connectTimeoutMS=_CALL_MS,
        socketTimeoutMS=_CALL_MS * 5,
    )


if __name__ == "__main__":
    sys.exit(main())
