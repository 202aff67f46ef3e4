"""Private backing services: Redis, PostgreSQL and RabbitMQ, started by Flashgrid itself."""
