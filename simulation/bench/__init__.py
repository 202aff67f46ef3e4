"""The benchmark: measures engine, baselines and driver against each other in one run.

Imported by the command line and by the room that plans capacity.
"""
