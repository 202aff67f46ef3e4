"""Sends the same load through Locust: a master deals the plan to workers, on this machine or on others.

Nobody but the command line imports this room, since a run takes any driver.
"""
