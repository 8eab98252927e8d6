"""Authentication and authorization: both happen before a route runs.

Each route declares with the dependency `needs` which scopes it requires. A test fails if a route
declares none.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from fastapi import Request, Security
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase

from gateway.access.failed_authentications import FailedAuthentications
from gateway.access.key_ring import KeyRing
from gateway.monitoring.request_facts import PRINCIPAL
from gateway.problems import ForbiddenError, TooManyFailuresError, UnauthenticatedError
from modelyard.contract.access.api_keys import ApiKey
from modelyard.contract.access.scopes import ANYONE, Principal, Scope, scopes_to_submit
from modelyard.contract.states import Verb

HEADER = "Authorization"
SCHEME = "Bearer"

_ADVICE = f"Send an API key in the header `{HEADER}: {SCHEME} my_...`."


class Authentication:
    """Authenticates requests by their API key; with null keys every client may do everything."""

    def __init__(
        self, keys: KeyRing | None, *, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """`on_failure` is called for each request without a valid key."""
        self._on_failure = on_failure
        self._keys = keys
        self._failed = FailedAuthentications()

    async def principal(self, authorization: Sequence[str], address: str | None) -> Principal:
        """Return the principal that the `Authorization` headers of a request authenticate.

        Raises `UnauthenticatedError` (after a pause, if the request has such a header),
        `TooManyFailuresError` and `StoreUnavailableError`.
        """
        if self._keys is None:
            return ANYONE
        if not authorization:
            self._on_failure()
            raise UnauthenticatedError(f"The request has no API key. {_ADVICE}")
        key: ApiKey | None = None
        try:
            key = _key_in(authorization)
            if self._failed.at_limit(address) and not self._keys.remembers(key):
                self._failed.count(address, key.key_id)
                self._on_failure()
                raise TooManyFailuresError
            return await self._keys.principal(key)
        except UnauthenticatedError as error:
            self._on_failure()
            waited = await self._failed.hold_back(address, key.key_id if key else None)
            if waited:
                raise
            raise UnauthenticatedError(error.message, close_connection=True) from error


class Needs(SecurityBase):
    """The dependency that admits a request if its principal has one of the scopes."""

    def __init__(self, *any_of: Scope) -> None:
        self.scopes = any_of
        self.scheme_name = "apiKey"
        self.model = BearerModel(
            bearerFormat="my_<id>_<secret>",
            description="An API key, required if the gateway runs with `MODELYARD_AUTH=keys`. "
            "Each operation lists the scopes of which one is enough.",
        )

    async def __call__(self, request: Request) -> Principal:
        """Return the principal of a request; raises as `principal` does, and `ForbiddenError`."""
        authentication = cast("Authentication", request.app.state.gateway.authentication)
        address = request.client.host if request.client else None
        principal = await authentication.principal(request.headers.getlist(HEADER), address)
        request.scope[PRINCIPAL] = principal
        if not principal.may(*self.scopes):
            raise ForbiddenError(*self.scopes)
        return principal


def needs(*any_of: Scope) -> Any:  # noqa: ANN401 - FastAPI's own type of it
    """Return the dependency of a route that requires one of these scopes."""
    return Security(Needs(*any_of), scopes=[scope.value for scope in any_of])


def refuse_to_submit(principal: Principal, verb: Verb) -> ForbiddenError | None:
    """Return an error if a principal may not submit requests of this verb, else null."""
    scopes = scopes_to_submit(verb)
    return None if principal.may(*scopes) else ForbiddenError(*scopes)


def _key_in(authorization: Sequence[str]) -> ApiKey:
    if len(authorization) > 1:
        raise UnauthenticatedError(f"The header {HEADER} was sent twice.")
    scheme, _, text = authorization[0].partition(" ")
    key = ApiKey.parse(text.strip()) if scheme.lower() == SCHEME.lower() else None
    if key is None:
        raise UnauthenticatedError(f"The header {HEADER} holds no API key. {_ADVICE}")
    return key
