"""Services of several nodes: which of them is in charge. The rest of `target` may import it."""
