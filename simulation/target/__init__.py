"""The engine under test: starting one, opening its sales, reading its stores and processes.

All rooms above it import it; the judge does not.
"""
