"""Flashgrid's simulation: drives the spike, records every request and proves what the engine promised."""
