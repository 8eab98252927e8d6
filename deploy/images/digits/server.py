"""The digits model behind the Open Inference Protocol: `python3 -m digits.server`.

Starlette on uvicorn rather than the standard library's server: keep-alive, pipelining, odd
requests and a clean stop are somebody's daily work there. What predicts or loads runs in a
thread, so that the health endpoints answer meanwhile.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from . import protocol
from .dataset import DatasetError, read_dataset
from .model import (
    ARTIFACTS,
    MODEL_FILE,
    ModelSlot,
    ModelUnreadableError,
    load_predictor,
    predict_dataset,
)
from .protocol import ProtocolError

PORT = 8080
MAX_BODY_BYTES = 8 * 1024 * 1024
_STOP_SECONDS = 3


def build_app(slot: ModelSlot) -> Starlette:
    """Put the routes over one model slot; tests give it a slot with a model of their own."""
    routes = _Routes(slot)
    return Starlette(
        routes=[
            Route("/v2/health/live", routes.live),
            Route("/v2/health/ready", routes.ready),
            Route("/v2", routes.server),
            Route("/v2/models/{model}", routes.model),
            Route("/v2/models/{model}/ready", routes.model_ready),
            Route("/v2/models/{model}/infer", routes.infer, methods=["POST"]),
            Route("/v2/repository/index", routes.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", routes.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", routes.unload, methods=["POST"]),
        ],
        exception_handlers={
            ProtocolError: _protocol_error,
            ModelUnreadableError: _model_unreadable,
            HTTPException: _http_error,
            Exception: _internal_error,
        },
    )


class _Routes:
    def __init__(self, slot: ModelSlot) -> None:
        self._slot = slot

    async def live(self, _request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> JSONResponse:
        # The protocol: ready means that all models are, and a 4xx says that they are not.
        return JSONResponse({"ready": self._slot.loaded}, 200 if self._slot.loaded else 400)

    async def server(self, _request: Request) -> JSONResponse:
        return JSONResponse(protocol.server_metadata())

    async def model(self, request: Request) -> JSONResponse:
        protocol.check_model(request.path_params["model"])
        return JSONResponse(protocol.model_metadata())

    async def model_ready(self, request: Request) -> JSONResponse:
        protocol.check_model(request.path_params["model"])
        loaded = self._slot.loaded
        return JSONResponse({"name": protocol.MODEL_NAME, "ready": loaded}, 200 if loaded else 400)

    async def index(self, request: Request) -> JSONResponse:
        only_ready = protocol.wants_only_ready(protocol.decode(await _body(request)))
        loaded = self._slot.loaded
        return JSONResponse(protocol.repository_index(loaded=loaded, only_ready=only_ready))

    async def load(self, request: Request) -> JSONResponse:
        protocol.check_model(request.path_params["model"])
        await run_in_threadpool(self._slot.load)
        return JSONResponse({"name": protocol.MODEL_NAME, "state": "READY"})

    async def unload(self, request: Request) -> JSONResponse:
        protocol.check_model(request.path_params["model"])
        await run_in_threadpool(self._slot.unload)
        return JSONResponse({"name": protocol.MODEL_NAME, "state": "UNAVAILABLE"})

    async def infer(self, request: Request) -> JSONResponse:
        protocol.check_model(request.path_params["model"])
        raw = await _body(request)
        return JSONResponse(await run_in_threadpool(_infer, self._slot, raw))


def _infer(slot: ModelSlot, raw: bytes) -> dict[str, object]:
    request = protocol.parse_infer(protocol.decode(raw))
    predictor = slot.predictor()
    if request.dataset is None:
        return protocol.infer_response(predictor.predict(request.rows), request)
    try:
        dataset = read_dataset(Path(request.dataset))
    except DatasetError as error:
        raise ProtocolError(400, str(error)) from error
    predictions, figures = predict_dataset(predictor, dataset)
    return protocol.infer_response(predictions, request, figures)


async def _body(request: Request) -> bytes:
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > MAX_BODY_BYTES:
            raise ProtocolError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return bytes(chunks)


async def _protocol_error(_request: Request, error: Exception) -> JSONResponse:
    status = error.status if isinstance(error, ProtocolError) else 500
    return JSONResponse({"error": str(error)}, status)


async def _model_unreadable(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, 500)


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    status, detail = 500, str(error)
    headers = None
    if isinstance(error, HTTPException):
        status, detail, headers = error.status_code, error.detail, error.headers
    return JSONResponse({"error": f"{detail}."}, status, headers=headers)


async def _internal_error(_request: Request, _error: Exception) -> JSONResponse:
    # The traceback goes to the log: Starlette raises the error again after this answer.
    return JSONResponse({"error": "The server failed; its log says why."}, 500)


def main() -> None:
    # As PID 1 an unhandled SIGTERM is ignored: until uvicorn handles it, this does.
    signal.signal(signal.SIGTERM, _stop)
    parser = argparse.ArgumentParser(description="Serve the digits model.")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS)
    options = parser.parse_args()
    slot = ModelSlot(lambda: load_predictor(options.artifacts / MODEL_FILE))
    uvicorn.run(
        build_app(slot),
        host="0.0.0.0",  # noqa: S104 - the container's own network is the boundary
        port=options.port,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_STOP_SECONDS,
    )


def _stop(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    main()
