"""`python -m bench.bare_endpoint`: what FastAPI itself needs for the same request.

One route that validates the body of `POST /v1/jobs` and answers 202, with the gateway's settings of
uvicorn. It keeps nothing and authenticates nobody. `BENCH_PORT` is where it listens.
"""

import os

import uvicorn
from fastapi import FastAPI

from deploy.local.ports import LOOPBACK
from modelyard.contract.answers import Accepted
from modelyard.contract.ids import new_operation_id
from modelyard.contract.messages import JobRequest
from modelyard.contract.states import OperationState
from modelyard.contract.views import Links

PORT_VARIABLE = "BENCH_PORT"

app = FastAPI(openapi_url=None)


@app.post("/v1/jobs", status_code=202)
async def submit(request: JobRequest) -> Accepted:
    """Accept every valid request."""
    operation_id = new_operation_id()
    return Accepted(
        operation_id=operation_id,
        job_id=request.job_id,
        state=OperationState.QUEUED,
        links=Links(self=f"/v1/operations/{operation_id}"),
    )


def main(port: int) -> None:
    """Serve until SIGTERM."""
    uvicorn.run(
        app,
        host=LOOPBACK,
        port=port,
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http="h11",
        ws="none",
    )


if __name__ == "__main__":
    main(int(os.environ[PORT_VARIABLE]))
