"""Submission: turns request bodies into operations that are durable in MongoDB or RabbitMQ."""
