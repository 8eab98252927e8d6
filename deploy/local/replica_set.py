"""Commands to mongod: forming a replica set, and checking whether it accepts writes.

Every command uses a new client, because a client that connected before the set was initiated keeps
reporting that sessions are not supported.
"""

from __future__ import annotations

from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from deploy.local.ports import LOOPBACK

NAME = "rs0"
DATABASE = "modelyard"
_TIMEOUT_MS = 2_000
_NOT_YET_INITIALIZED = 94
_SETTINGS = {"electionTimeoutMillis": 2_000, "heartbeatIntervalMillis": 500}


def addresses(ports: list[int]) -> str:
    return ",".join(f"{LOOPBACK}:{port}" for port in ports)


def url(ports: list[int]) -> str:
    return f"mongodb://{addresses(ports)}/{DATABASE}?replicaSet={NAME}"


def version(port: int) -> str | None:
    """Return the version of the mongod on this port; None if it does not answer."""
    try:
        return str(_ask(port, "buildInfo")["version"])
    except PyMongoError:
        return None


def form(ports: list[int]) -> None:
    """Initiate the set, or reconfigure an existing one to these ports."""
    members = [{"_id": index, "host": f"{LOOPBACK}:{port}"} for index, port in enumerate(ports)]
    try:
        config = _ask(ports[0], "replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != _NOT_YET_INITIALIZED:
            raise
        first = {"_id": NAME, "members": members, "settings": _SETTINGS}
        _ask(ports[0], "replSetInitiate", first)
        return
    moved = [old | new for old, new in zip(config["members"], members, strict=True)]
    if moved != config["members"]:
        config |= {"members": moved, "version": config["version"] + 1}
        _ask(ports[0], "replSetReconfig", config, force=True)


def takes_writes(mongo_url: str) -> bool:
    """Tell whether a primary accepts a write that the majority confirms."""
    timeouts: dict[str, Any] = {"serverSelectionTimeoutMS": _TIMEOUT_MS, "timeoutMS": _TIMEOUT_MS}
    try:
        with MongoClient[dict[str, Any]](mongo_url, w="majority", **timeouts) as client:
            client["local_stack"]["probes"].replace_one({"_id": "probe"}, {}, upsert=True)
    except PyMongoError:
        return False
    return True


def answers(mongo_url: str) -> bool:
    """Tell whether a primary can be found."""
    try:
        with MongoClient[dict[str, Any]](mongo_url, serverSelectionTimeoutMS=5_000) as client:
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def primary(ports: list[int]) -> int | None:
    """Return the index of the present primary; None while there is none."""
    for index, port in enumerate(ports):
        try:
            if _ask(port, "hello").get("isWritablePrimary"):
                return index
        except PyMongoError:
            continue
    return None


def _ask(port: int, command: str, value: object = 1, **more: object) -> dict[str, Any]:
    """Run an admin command on the member behind `port`, whatever its role in the set."""
    with MongoClient[dict[str, Any]](
        LOOPBACK, port, directConnection=True, serverSelectionTimeoutMS=_TIMEOUT_MS
    ) as client:
        return client.admin.command({command: value, **more})
