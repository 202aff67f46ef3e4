"""Hostile clients: what they send, the process that plays them, and what became of the sale."""
