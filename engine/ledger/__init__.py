"""The ledger: all that speaks to PostgreSQL. Imported by the stages and by http."""
