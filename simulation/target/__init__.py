"""The engine under test: starting one, opening its sales, reading its stores and processes.

Faults, runs, campaigns and benchmarks import it; the judge does not.
"""
