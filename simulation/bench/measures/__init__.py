"""What the benchmark measures, one module for each question. Imported by bench.run."""
