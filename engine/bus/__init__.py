"""The bus: all that speaks to RabbitMQ. Imported by the stages and the command line."""
