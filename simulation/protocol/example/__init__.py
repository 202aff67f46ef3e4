"""One example: its processes and stores, what is asked of them, and what Redis loses."""
