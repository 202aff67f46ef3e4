"""A run in the forms that other tools read. The command line may import it."""
