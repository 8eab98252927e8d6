"""The exit codes of `modelyard`. Success is 0."""

FAILED = 1
"""The operation failed, or the gateway refused the request."""
USAGE = 2
"""The command line or a setting is wrong."""
UNAVAILABLE = 3
"""The gateway, or MongoDB, does not answer."""
INTERRUPTED = 130
"""The user ended the command, as shells give it for SIGINT."""
