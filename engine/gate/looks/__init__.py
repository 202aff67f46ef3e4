"""Looks at the gate, which change nothing: stock, pending orders, what waits. Imported by all above it."""
