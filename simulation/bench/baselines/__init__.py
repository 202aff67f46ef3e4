"""The baselines: servers that answer the same purchase in other ways. The benchmark starts them."""
