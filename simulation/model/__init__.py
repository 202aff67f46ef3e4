"""What all rooms talk about: outcomes, the history, the final state. Pure; imports nothing of the house."""
