"""What the benchmark measures: one module for each question. Only bench.run imports this room."""
