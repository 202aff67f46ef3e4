"""Sends the load: the plan of a scenario, the open loop, and the processes that run it.

`locust` sends the same plan through Locust, `hostile` plays hostile clients. Everything that carries out or
records a run may import this room; it imports scenario, model and errors.
"""
