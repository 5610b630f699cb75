"""Studies: many runs from one YAML, and what their results make of them."""
