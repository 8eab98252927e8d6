"""From a body to operations that are durable in MongoDB or RabbitMQ."""
