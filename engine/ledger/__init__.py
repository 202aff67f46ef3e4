"""The ledger: all that speaks to PostgreSQL. Imported by all rooms above it."""
