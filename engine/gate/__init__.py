"""The gate: all that speaks to Redis. Imported by the stages and by http."""
