"""The story of one order, one request, one user or one second of a run, from its record.

The command line and the notebooks may import it.
"""
