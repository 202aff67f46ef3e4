"""Private backing services for a machine that has none: one module for each program, and the stack of them.

Needs the packages of `flashgrid[local]`. Imported by the server and the command line, and by the simulation.
"""
