"""The benchmark: measures engine, baselines and driver against each other in one run.

Only the command line imports this room.
"""
