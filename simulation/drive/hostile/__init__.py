"""Hostile clients: what they send, and the process that plays them."""
