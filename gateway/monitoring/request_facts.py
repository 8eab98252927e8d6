"""What is noted in the scope of a request where it is known, for the access log and the metrics."""

ROUTE = "modelyard.route"
"""The template of its path, if `DirectRoutes` took it."""
PRINCIPAL = "modelyard.principal"
CODE = "modelyard.code"
"""The code of the problem that answers it."""
VERB = "modelyard.verb"
"""There if the request submits an operation; null until its verb was read."""
