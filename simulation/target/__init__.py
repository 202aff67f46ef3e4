"""The engine under test: starting one, opening its sales, reading its stores."""
