"""Authorization: scopes, roles (named sets of scopes) and principals; no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from modelyard.contract.ids import DEFAULT_TENANT
from modelyard.contract.states import Verb


class Scope(StrEnum):
    """One thing that a principal may do."""

    JOBS_READ = "jobs:read"
    """Read jobs and operations, with their inputs and results."""
    JOBS_SUBMIT = "jobs:submit"
    """Submit, retry and cancel requests of every verb; delete jobs and operations that ended."""
    JOBS_INFER = "jobs:infer"
    """Submit and retry INFER requests on existing jobs; no other verb."""
    CATALOG_READ = "catalog:read"
    CATALOG_WRITE = "catalog:write"
    """Choose what runs on the hosts: images and datasets."""
    HOSTS_READ = "hosts:read"
    HOSTS_ADMIN = "hosts:admin"
    """Cordon, uncordon and drain hosts; delete lost ones."""
    DEAD_LETTERS = "dead-letters"
    """Read, replay and delete dead letters, with their contents."""
    KEYS_ADMIN = "keys:admin"
    """Create keys with scopes that one has; list and revoke keys."""
    METRICS = "metrics"


class Role(StrEnum):
    """A name for a set of scopes."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


_VIEWER = frozenset({Scope.JOBS_READ, Scope.CATALOG_READ, Scope.HOSTS_READ})
_USER = _VIEWER | {Scope.JOBS_SUBMIT, Scope.JOBS_INFER}
_OPERATOR = _USER | {Scope.CATALOG_WRITE, Scope.HOSTS_ADMIN, Scope.DEAD_LETTERS, Scope.METRICS}

SCOPES_OF: Mapping[Role, frozenset[Scope]] = MappingProxyType(
    {
        Role.VIEWER: _VIEWER,
        Role.USER: _USER,
        Role.OPERATOR: _OPERATOR,
        Role.ADMIN: frozenset(Scope),
    }
)
"""What each role may do. A key keeps the scopes that its role had when it was created."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated sender of a request, and what it may do."""

    name: str
    scopes: frozenset[Scope]
    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    expires_at: datetime | None = None
    """When its key expires; null for one that does not."""

    def may(self, *any_of: Scope) -> bool:
        """Tell whether the principal has one of the scopes."""
        return not self.scopes.isdisjoint(any_of)


ANYONE = Principal("anyone", frozenset(Scope))
"""The principal of every request to a gateway that asks for no API key."""


def scopes_to_submit(verb: Verb) -> tuple[Scope, ...]:
    """Return the scopes of which one is enough to submit a request of this verb."""
    if verb is Verb.INFER:
        return (Scope.JOBS_SUBMIT, Scope.JOBS_INFER)
    return (Scope.JOBS_SUBMIT,)
