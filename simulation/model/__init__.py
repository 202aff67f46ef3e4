"""What all rooms talk about: outcomes, history, final state, and what happened in a run.

Pure: it imports no other room, and every room may import it.
"""
