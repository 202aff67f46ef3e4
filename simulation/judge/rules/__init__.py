"""The rules of a correct run, by subject, and the evidence that they read. Imported by the verdict."""
