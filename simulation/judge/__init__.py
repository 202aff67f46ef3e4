"""The judge: says from a run's record whether the engine was correct, and what the run measured.

Pure: it reads no file, asks no service and knows nothing of the engine. Only scenario, model and errors are
imported here; record, verdict, report and the command line import the judge.
"""
