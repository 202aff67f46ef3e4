"""Private backing services for a machine that has none. Imported by the server and the command line."""
