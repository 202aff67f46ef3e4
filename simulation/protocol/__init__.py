"""The protocol itself: as a model that a checker exhausts, and the engine's real steps in every order."""
