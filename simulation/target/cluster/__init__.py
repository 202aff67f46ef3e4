"""Services of several nodes: which of them is in charge. Imports nothing of the rest of `target`."""
