"""Which links each side of the split serves: split rules, domains, groups of links, balanced batches."""
