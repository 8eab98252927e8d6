"""A Docker Engine's API over a socket, with answers as a test wants them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from worker.engine.docker.runtime import DockerRuntime

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
ID = "0123456789abcdef"


def document(**state: object) -> dict[str, Any]:
    """Return a container as `GET /containers/{id}/json` shows it."""
    return {"Id": ID, "Name": "/x", "State": {"Running": False, **state}, "Config": {}}


class ScriptedEngine:
    """Answers each `METHOD path` (without the version) as it was told; all else is 404."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"GET /version": {"ApiVersion": "1.41", "Version": "20"}}
        """JSON for a 200, (status, text), or a function."""
        self.asked: list[str] = []
        self.bodies: dict[str, Any] = {}
        self.open = 0
        """Requests that hang now."""

    async def hang(self, request: web.Request) -> web.StreamResponse:
        """Begin an answer and never go on with it."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.open += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.open -= 1
        return response

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path.removeprefix('/v1.41')}"
        self.asked.append(asked)
        if request.can_read_body:
            self.bodies[asked] = await request.json()
        known = self.answers.get(asked, (404, "no such thing"))
        if callable(known):
            made: web.StreamResponse = await known(request)
            return made
        if isinstance(known, tuple):
            return web.Response(status=known[0], text=known[1])
        return web.json_response(known)


@asynccontextmanager
async def scripted_engine(folder: Path) -> AsyncIterator[tuple[ScriptedEngine, DockerRuntime]]:
    """Yield an engine and a runtime that speaks to it."""
    engine = ScriptedEngine()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", engine.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    socket = folder / "engine.sock"
    await web.UnixSite(runner, str(socket)).start()
    runtime = DockerRuntime(f"unix://{socket}", host_id="host-1", network="n", publish=True)
    try:
        yield engine, runtime
    finally:
        await runtime.close()
        await runner.cleanup()
