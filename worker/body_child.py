"""`python -m worker.body_child`: the process that parses large results for a worker."""

from collections.abc import Iterator

from modelyard.process.body_child import Part, serve
from worker.model_server.results import pack


def result(body: bytes) -> Iterator[Part]:
    """Parse the result of a model."""
    yield pack(body)


if __name__ == "__main__":
    serve({"result": result})
