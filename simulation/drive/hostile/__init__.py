"""Plays hostile clients: what they send, drawn from a seed, and the process that sends it.

The campaign `flashsim fuzz` imports this room.
"""
