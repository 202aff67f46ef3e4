"""The judge: rules, numbers and comparison, pure. Imports the scenario's types and the model alone."""
