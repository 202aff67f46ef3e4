"""The benchmark: engine, baselines and driver, measured against each other in one run."""
