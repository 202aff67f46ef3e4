"""Scenarios: what is sold, who comes and when, which faults are done, what is asked of the run."""
