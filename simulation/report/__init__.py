"""What a person reads of finished runs: pages, plots, the index, comparisons, a summary for the terminal.

Pure functions of records. The live view, the benchmark, campaigns and the command line may import it.
"""
