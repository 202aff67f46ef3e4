"""Driving the load: the plan, the open loop, its processes, and the same load through Locust."""
