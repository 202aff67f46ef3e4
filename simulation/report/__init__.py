"""What a person reads of finished runs: pages, plots, the index, comparisons. Pure functions of records."""
