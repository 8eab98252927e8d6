"""The AMQP property `type` of every message, with who sends it.

The type decides how a message is read. A dispatcher trusts it only if RabbitMQ has verified a user
that may send such messages (`dispatcher/senders.py`). A body without a type on the jobs queue is a
client's request.
"""

SUBMISSION_TYPE = "modelyard.submission.v1"
"""A gateway to the jobs queue: requests that have operation ids already (`Submission`)."""
CANCEL_TYPE = "modelyard.cancel.v1"
"""A gateway to the jobs queue: a request to cancel is in the record (`CancelNotice`)."""
OVERDUE_TYPE = "modelyard.overdue.v1"
"""A dispatcher to the jobs queue, without a body. When this message comes back, every message that
was published before it has been read. So if an operation still has no position in its job's order,
its message was lost."""
COMMANDS_TYPE = "modelyard.commands.v1"
"""A dispatcher to a host's queue: commands for its worker (`HostCommands`)."""
CONTROL_TYPE = "modelyard.control.v1"
"""A dispatcher to a host's control queue: cancels, removals, requests for reports
(`HostControl`)."""
REPORTS_TYPE = "modelyard.reports.v1"
"""A worker to the reports queue: what it did and what it found (`WorkerReports`)."""
TRANSFER_TYPE = "modelyard.transfer.v1"
"""A worker to the reports queue: a piece of a large result, or the wish for one of a large input
(`WorkerTransfer`)."""
UNREADABLE_TYPE = "modelyard.unreadable.v1"
"""A worker to the reports queue: a command that it could not read, for the dead letters. The
routing key proves which host sent it."""
OVERDUE_REPORTS_TYPE = "modelyard.overdue-reports.v1"
"""A dispatcher to the reports queue, without a body. When this message comes back, every report
that was published before it is recorded. So if a command is still not accepted by then, no worker
has taken it."""
HEARTBEATS_TYPE = "modelyard.heartbeat.v1"
"""A worker to the heartbeats queue: it is alive and can work (`Heartbeat`)."""
HELLO_TYPE = "modelyard.hello.v1"
"""A worker to the heartbeats queue: it asks for the queues of its host (`HostHello`)."""
EVENT_TYPE = "modelyard.event.v1"
"""A dispatcher to subscribers: a fact that is recorded (`Event`)."""
