"""Every error that Modelyard reports: one stable code and one sentence each.

Machines read the `ErrorCode`: in `error.code` of an operation, in `code` of an HTTP problem and in
the reason of a dead letter. A released code is never renamed or reused.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modelyard.contract.content.free_text import bounded_facts, cut_to

MAX_MESSAGE_CHARS = 4_096
"""Characters of the message of an error."""


class ErrorCode(StrEnum):
    """Stable codes. The comments say which part of Modelyard reports them."""

    # Validation of requests, over HTTP and AMQP.
    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    BATCH_TOO_LARGE = "batch_too_large"
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused"
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_DATASET = "unknown_dataset"

    # Authentication and authorization.
    UNAUTHENTICATED = "unauthenticated"
    TOO_MANY_FAILURES = "too_many_failures"
    FORBIDDEN = "forbidden"
    GRANT_TOO_LARGE = "grant_too_large"
    CROSS_SITE = "cross_site"
    MISDIRECTED = "misdirected"

    # HTTP only.
    NOT_FOUND = "not_found"
    NO_SERVING_JOB = "no_serving_job"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    RESULT_NOT_READY = "result_not_ready"
    NO_RESULT = "no_result"
    ALREADY_ENDED = "already_ended"
    PRECONDITION_FAILED = "precondition_failed"
    NOT_RETRYABLE = "not_retryable"
    NOT_REPLAYABLE = "not_replayable"
    STILL_IN_USE = "still_in_use"
    QUERY_TOO_SLOW = "query_too_slow"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"

    # The scheduler: the operation can never run, or did not start in time.
    INVALID_JOB_STATE = "invalid_job_state"
    CONTAINER_MISMATCH = "container_mismatch"
    MODEL_MISMATCH = "model_mismatch"
    DATASET_MISMATCH = "dataset_mismatch"
    UNSUPPORTED_VERB = "unsupported_verb"
    MISSING_INPUT = "missing_input"
    UNEXPECTED_INPUT = "unexpected_input"
    QUEUE_TIMEOUT = "queue_timeout"

    # The worker: what happened to the container.
    SPEC_REFUSED = "spec_refused"
    IMAGE_REFUSED = "image_refused"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_DENIED = "image_denied"
    IMAGE_PULL_FAILED = "image_pull_failed"
    DATASET_REFUSED = "dataset_refused"
    DATASET_UNAVAILABLE = "dataset_unavailable"
    CREATE_FAILED = "create_failed"
    DISK_FULL = "disk_full"
    START_FAILED = "start_failed"
    CONTAINER_MISSING = "container_missing"
    EXITED = "exited"
    DISK_QUOTA_EXCEEDED = "disk_quota_exceeded"
    OOM_KILLED = "oom_killed"
    UNHEALTHY = "unhealthy"
    NOT_READY = "not_ready"
    LOAD_FAILED = "load_failed"
    UNLOAD_FAILED = "unload_failed"
    MEMORY_NOT_FREED = "memory_not_freed"
    INFERENCE_FAILED = "inference_failed"
    BAD_RESULT = "bad_result"
    INPUT_GONE = "input_gone"
    RESULT_TOO_LARGE = "result_too_large"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"

    # The infrastructure: Docker engines, workers and hosts.
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ENGINE_REFUSED = "engine_refused"
    WORKER_INTERRUPTED = "worker_interrupted"
    WORKER_ERROR = "worker_error"
    NOT_ACCEPTED = "not_accepted"
    HOST_LOST = "host_lost"
    HOST_DRAINED = "host_drained"

    # Dead letters.
    DELIVERY_LIMIT = "delivery_limit"
    EXPIRED_MESSAGE = "expired_message"
    DEAD_LETTERED = "dead_lettered"


SENTENCES: Mapping[ErrorCode, str] = MappingProxyType(
    {
        ErrorCode.INVALID_JSON: "The body is not valid JSON (RFC 8259).",
        ErrorCode.INVALID_REQUEST: "The request does not follow its schema.",
        ErrorCode.BODY_TOO_LARGE: "The body is larger than the limit.",
        ErrorCode.UNSUPPORTED_MEDIA_TYPE: "The body must be sent as application/json.",
        ErrorCode.BATCH_TOO_LARGE: "A batch holds 1 to 1,000 requests.",
        ErrorCode.IDEMPOTENCY_KEY_REUSED: (
            "This idempotency key was already used for a different request."
        ),
        ErrorCode.UNKNOWN_MODEL: "The catalog has no model of this name.",
        ErrorCode.UNKNOWN_DATASET: "The catalog has no dataset of this name.",
        ErrorCode.UNAUTHENTICATED: "The request carries no valid API key.",
        ErrorCode.TOO_MANY_FAILURES: (
            "This address sent too many requests with invalid API keys; try again later."
        ),
        ErrorCode.FORBIDDEN: "The sender has no permission to do this.",
        ErrorCode.GRANT_TOO_LARGE: "An API key can't give another key more than it has itself.",
        ErrorCode.CROSS_SITE: "A web page of another site may not send this request.",
        ErrorCode.MISDIRECTED: "This gateway does not serve the host name of the request.",
        ErrorCode.NOT_FOUND: "There is nothing at this address.",
        ErrorCode.NO_SERVING_JOB: "No job of the model can take an inference now.",
        ErrorCode.METHOD_NOT_ALLOWED: "This address does not support this method.",
        ErrorCode.RESULT_NOT_READY: "The operation has not ended yet.",
        ErrorCode.NO_RESULT: "The operation ended without a result.",
        ErrorCode.ALREADY_ENDED: "The operation has ended and can't be cancelled any more.",
        ErrorCode.PRECONDITION_FAILED: (
            "The entry is not what the request's If-Match or If-None-Match expects."
        ),
        ErrorCode.NOT_RETRYABLE: "Only an operation that ended without success can be retried.",
        ErrorCode.NOT_REPLAYABLE: "The dead letter can't be published again as it is.",
        ErrorCode.STILL_IN_USE: "It can't be deleted, because something still needs it.",
        ErrorCode.QUERY_TOO_SLOW: "The query took too long; ask for less.",
        ErrorCode.UNAVAILABLE: "A service that the request needs does not answer; try again.",
        ErrorCode.INTERNAL: "Modelyard failed with an unexpected error.",
        ErrorCode.INVALID_JOB_STATE: "The verb cannot start from the state the job is in.",
        ErrorCode.CONTAINER_MISMATCH: "The container id given is not the job's container.",
        ErrorCode.MODEL_MISMATCH: "The model given is not the one the job was created with.",
        ErrorCode.DATASET_MISMATCH: "The dataset given is not the one the job was created with.",
        ErrorCode.UNSUPPORTED_VERB: "The model's profile does not support this verb.",
        ErrorCode.MISSING_INPUT: "The verb needs an input and the request has none.",
        ErrorCode.UNEXPECTED_INPUT: "The request has an input and the model's profile takes none.",
        ErrorCode.QUEUE_TIMEOUT: (
            "The operation waited in the queue for longer than its queue_timeout_s."
        ),
        ErrorCode.SPEC_REFUSED: "The model or the dataset breaks a rule of the catalog.",
        ErrorCode.IMAGE_REFUSED: "The host's allow-list does not include this image.",
        ErrorCode.IMAGE_NOT_FOUND: "The image exists neither on the host nor in its registry.",
        ErrorCode.IMAGE_DENIED: (
            "The registry denies access to the image: it requires credentials, or has no such "
            "repository."
        ),
        ErrorCode.IMAGE_PULL_FAILED: "The image could not be pulled.",
        ErrorCode.DATASET_REFUSED: "The host's settings do not allow this dataset to be mounted.",
        ErrorCode.DATASET_UNAVAILABLE: (
            "The dataset does not exist on the host, or is not readable there."
        ),
        ErrorCode.CREATE_FAILED: "The engine refused to create the container.",
        ErrorCode.DISK_FULL: "The host has no space left on its disk.",
        ErrorCode.START_FAILED: "The engine could not start the container.",
        ErrorCode.CONTAINER_MISSING: "The job's container is not on its host any more.",
        ErrorCode.EXITED: "The container exited unexpectedly.",
        ErrorCode.DISK_QUOTA_EXCEEDED: (
            "The container wrote more to the disk than its limit allows."
        ),
        ErrorCode.OOM_KILLED: (
            "The container was killed for using more memory than its limit allows."
        ),
        ErrorCode.UNHEALTHY: "The server in the container says that its model is not ready.",
        ErrorCode.NOT_READY: "The container did not answer ready before its deadline.",
        ErrorCode.LOAD_FAILED: "The model server refused to load the model.",
        ErrorCode.UNLOAD_FAILED: "The model server refused to unload the model.",
        ErrorCode.MEMORY_NOT_FREED: (
            "The model server did not give its memory back, so its container was stopped."
        ),
        ErrorCode.INFERENCE_FAILED: "The model server answered the inference with an error.",
        ErrorCode.BAD_RESULT: "The model's answer is no result.",
        ErrorCode.INPUT_GONE: "The uploaded input is not there, or not any more.",
        ErrorCode.RESULT_TOO_LARGE: "The result is larger than a worker may report.",
        ErrorCode.TIMED_OUT: "The operation ran for longer than its timeout_s.",
        ErrorCode.CANCELLED: "A client cancelled the operation.",
        ErrorCode.ENGINE_UNAVAILABLE: "The host's Docker engine does not answer.",
        ErrorCode.ENGINE_REFUSED: "The host's Docker engine refused the request.",
        ErrorCode.WORKER_INTERRUPTED: "The host's worker stopped while the operation ran.",
        ErrorCode.WORKER_ERROR: "The worker failed with an error of its own.",
        ErrorCode.NOT_ACCEPTED: "The host's worker did not accept the command in time.",
        ErrorCode.HOST_LOST: "The host sent no heartbeat for longer than its lease.",
        ErrorCode.HOST_DRAINED: "The host was being drained, and the drain's deadline passed.",
        ErrorCode.DELIVERY_LIMIT: "The message was delivered too often without being settled.",
        ErrorCode.EXPIRED_MESSAGE: (
            "The message waited in a queue for longer than the queue allows."
        ),
        ErrorCode.DEAD_LETTERED: "The broker moved the message from its queue to the dead letters.",
    },
)


def _known_code(value: object) -> object:
    """Read a code that only a newer process knows as `worker_error`.

    The rest of the message stays readable that way.
    """
    known = not isinstance(value, str) or value in ErrorCode.__members__.values()
    return value if known else ErrorCode.WORKER_ERROR


class ErrorInfo(BaseModel):
    """Why an operation did not succeed: the code is for machines, the message for people."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    code: Annotated[ErrorCode, BeforeValidator(_known_code)]
    message: Annotated[str, cut_to(MAX_MESSAGE_CHARS)] = Field(max_length=MAX_MESSAGE_CHARS)
    """A longer one is cut."""
    detail: Annotated[dict[str, Any], BeforeValidator(bounded_facts)] = Field(default_factory=dict)
    """Facts that help, such as `exit_code`, `log_tail`, `pointer`; free of secrets.

    They have 16,384 characters in all, 4,096 in one text, and 8 levels; what is beyond is cut or
    left out. Stored as JSON text; read from JSON text or from an object.
    """

    @classmethod
    def of(cls, code: ErrorCode, message: str | None = None) -> Self:
        """Return an error with `message`, or with the code's own sentence if there is none."""
        return cls(code=code, message=message or SENTENCES[code])


class ModelyardError(Exception):
    """The root of the errors that Modelyard raises on purpose; it always has a code."""

    def __init__(self, code: ErrorCode, message: str | None = None, **detail: Any) -> None:  # noqa: ANN401 - facts for people, of any JSON type
        self.code = code
        self.message = message or SENTENCES[code]
        self.detail = detail
        super().__init__(f"{code}: {self.message}")

    def info(self) -> ErrorInfo:
        """Return the error as it is stored and sent."""
        return ErrorInfo(code=self.code, message=self.message, detail=self.detail)


class InvalidRequestError(ModelyardError):
    """The request is invalid; nothing was stored."""


class StoreUnavailableError(ModelyardError):
    """MongoDB did not answer in time, or failed; whether the write took effect is unknown."""

    def __init__(self, message: str = "MongoDB does not answer.") -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class SlowQueryError(ModelyardError):
    """MongoDB ended a query because it took too long for what was asked; it is not away."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.QUERY_TOO_SLOW, message)


class StoreUnreadableError(ModelyardError):
    """MongoDB holds a document that is not readable as BSON; trying again does not help."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INTERNAL, message)


class BrokerUnavailableError(ModelyardError):
    """RabbitMQ did not confirm in time; whether it has the message is unknown."""

    def __init__(self, message: str = "RabbitMQ does not answer.") -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)
