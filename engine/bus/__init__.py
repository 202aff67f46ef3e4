"""The bus: all that speaks to RabbitMQ. Imported by the stages."""
