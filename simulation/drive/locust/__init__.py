"""The same load through Locust, in one process or as a leader with workers."""
