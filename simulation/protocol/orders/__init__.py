"""Orders with a name: each asks one guard of the protocol by itself, and asserts what it says."""
