"""The methods of each path, for the header `Allow`; they come from the app's own routes."""

from collections.abc import Iterable

from starlette.routing import BaseRoute, Route

HEAD, OPTIONS = "HEAD", "OPTIONS"


class AllowedMethods:
    """The methods that the paths of an app support.

    `HEAD` is allowed wherever `GET` is, and `OPTIONS` everywhere: `ImpliedMethods` answers them.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._templates = [
            (one.path_regex, frozenset(one.methods or ()))
            for one in routes
            if isinstance(one, Route)
        ]

    def of(self, path: str) -> list[str]:
        """Return the methods of a path, in upper case and sorted; none if there is no such path.

        `*` stands for the server as a whole (RFC 9110, section 9.3.7).
        """
        found = {
            method
            for template, methods in self._templates
            if path == "*" or template.match(path)
            for method in methods
        }
        return sorted(_with_implied(found)) if found else []


def _with_implied(methods: set[str]) -> set[str]:
    return methods | {OPTIONS} | ({HEAD} if "GET" in methods else set())
