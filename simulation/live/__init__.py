"""The live view: a run on a terminal and on a page while it goes on. Imported by the command line."""
