"""RabbitMQ's users, their permissions, and the definitions document; no I/O."""
