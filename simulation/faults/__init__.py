"""Faults: what is done to a running engine, its services and the network between them.

Only a run imports it. The types of faults are in `scenario.fault`.
"""
