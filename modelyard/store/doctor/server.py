"""Whether MongoDB is there as a replica set, and lets this process do what it has to."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.uri_parser import parse_uri

from modelyard.doctor.clock import check_offset
from modelyard.doctor.diagnosis import Diagnosis, failure, ok, version_of, warning
from modelyard.store.connection import DEFAULT_DATABASE

ABOUT = "database"
OLDEST = (6,)
WITHIN_S = 5.0
ACTIONS = frozenset({"find", "insert", "update", "remove", "createCollection", "createIndex"})
"""What gateways and dispatchers do in their database."""

_AUTHENTICATION_FAILED = 18
Client = AsyncIOMotorClient[dict[str, Any]]


async def check_database(url: str) -> list[Diagnosis]:
    """Look at the database as a gateway or a dispatcher sees it. Nothing is changed there."""
    try:
        client: Client = _client(url)
    except (PyMongoError, ValueError):
        return [
            failure(
                ABOUT,
                "the URL can't be used",
                "Write MODELYARD_MONGO_URL as mongodb://USER:PASSWORD@HOST:PORT/DATABASE"
                "?replicaSet=NAME, with special characters of user and password as %XX.",
            )
        ]
    try:
        async with asyncio.timeout(2 * WITHIN_S):
            return await _examined(client)
    except OperationFailure as error:
        return [_refused(error)]
    except (PyMongoError, TimeoutError) as error:
        return [await _why_unreachable(url, error)]
    finally:
        client.close()


def _client(url: str, **options: Any) -> Client:  # noqa: ANN401 - the driver's own options
    return AsyncIOMotorClient(
        url,
        appname="modelyard-doctor",
        serverSelectionTimeoutMS=int(WITHIN_S * 1_000),
        connectTimeoutMS=int(WITHIN_S * 1_000),
        **options,
    )


async def _examined(client: Client) -> list[Diagnosis]:
    database = client.get_default_database(DEFAULT_DATABASE)
    before = datetime.now(UTC)
    hello = await database.command("hello")
    after = datetime.now(UTC)
    status = await database.command("connectionStatus", showPrivileges=True)
    version = str((await database.command("buildInfo"))["version"])
    return [
        _membership(hello),
        _version(version),
        _rights(status["authInfo"], database.name),
        check_offset(
            hello["localTime"].replace(tzinfo=UTC), before, after, whose="the database's clock"
        ),
    ]


def _membership(hello: Mapping[str, Any]) -> Diagnosis:
    name = hello.get("setName")
    if name is None:
        return _standalone(str(hello.get("me", "MongoDB")))
    if not hello.get("isWritablePrimary"):
        return _no_primary(name)
    return ok(ABOUT, f"{hello.get('me')} is the primary of the replica set {name}")


def _standalone(place: str) -> Diagnosis:
    return failure(
        ABOUT,
        f"{place} is not a member of a replica set",
        "Start mongod with --replSet NAME, run rs.initiate() once, and add ?replicaSet=NAME to "
        "MODELYARD_MONGO_URL. One member is enough.",
    )


def _no_primary(name: str) -> Diagnosis:
    return failure(
        ABOUT,
        f"the replica set {name} has no primary that can be reached",
        "Look at rs.status(): most members must run and reach each other, and this machine must "
        "reach each member by the name that the set has for it.",
    )


def _version(found: str) -> Diagnosis:
    if version_of(found) >= OLDEST:
        return ok(ABOUT, f"MongoDB {found}")
    return failure(ABOUT, f"MongoDB {found}", f"Upgrade MongoDB to {OLDEST[0]} or newer.")


def _rights(info: Mapping[str, Any], database: str) -> Diagnosis:
    users = [one["user"] for one in info["authenticatedUsers"]]
    if not users:
        return warning(
            ABOUT,
            "it is used without a user and a password",
            "Who can write to the database controls the fleet. Create a user, start mongod with "
            "authorization, and put the user into MODELYARD_MONGO_URL.",
        )
    allowed: set[str] = set()
    for privilege in info["authenticatedUserPrivileges"]:
        resource = privilege["resource"]
        everything = resource.get("anyResource", False)
        if everything or (
            resource.get("db") in ("", database) and resource.get("collection") == ""
        ):
            allowed |= set(privilege["actions"])
    if missing := sorted(ACTIONS - allowed):
        return failure(
            ABOUT,
            f"the user {users[0]} may not {', '.join(missing)} in {database}",
            f"Give the user the role readWrite on the database {database}.",
        )
    return ok(ABOUT, f"the user {users[0]} may read and write {database}")


def _refused(error: OperationFailure) -> Diagnosis:
    if error.code == _AUTHENTICATION_FAILED:
        return failure(
            ABOUT,
            "MongoDB refuses the user or the password",
            "Correct user and password in MODELYARD_MONGO_URL, with special characters as %XX. If "
            "the user was created in another database, add authSource=THAT_DATABASE.",
        )
    return failure(
        ABOUT,
        f"MongoDB refuses what a service asks first: {error.details or error}"[:300],
        "Give the user in MODELYARD_MONGO_URL the role readWrite on the database.",
    )


async def _why_unreachable(url: str, error: Exception) -> Diagnosis:
    """Ask the first server itself: the driver only says that no server fits the URL."""
    try:
        parsed = parse_uri(url, connect_timeout=WITHIN_S)
    except (PyMongoError, ValueError) as unparsed:
        return _silent(str(unparsed))
    host, port = parsed["nodelist"][0]
    direct: Client = _client(f"mongodb://{_bracketed(host)}:{port}", directConnection=True)
    try:
        async with asyncio.timeout(WITHIN_S):
            hello = await direct.admin.command("hello")
    except (PyMongoError, TimeoutError):
        return _silent(f"{host}:{port}")
    finally:
        direct.close()
    name = hello.get("setName")
    if name is None:
        return _standalone(f"{host}:{port}")
    wanted = parsed["options"].get("replicaSet")
    if wanted not in (None, name):
        return failure(
            ABOUT,
            f"{host}:{port} is in the replica set {name}, and not in {wanted}",
            f"Write replicaSet={name} in MODELYARD_MONGO_URL.",
        )
    if not hello.get("primary"):
        return _no_primary(name)
    return failure(
        ABOUT,
        f"the primary, {hello['primary']}, can't be reached: {type(error).__name__}",
        "This machine must reach each member of the set by the name that the set has for it: look "
        "at rs.conf().",
    )


def _silent(place: str) -> Diagnosis:
    return failure(
        ABOUT,
        f"MongoDB can't be reached: {place} does not answer",
        "Check that mongod runs, that MODELYARD_MONGO_URL names its host and its port, and that no "
        "firewall is between. If mongod asks for TLS, add tls=true.",
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
