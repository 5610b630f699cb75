"""Studies: sets of runs defined by one YAML, and tables of their results."""
