"""The gate: all that speaks to Redis. Imported by all rooms above it."""
