"""The commands of flashsim."""
