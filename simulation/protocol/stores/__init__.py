"""The stores of an example: each exchange of the engine with one of them is a step. For the room above."""
