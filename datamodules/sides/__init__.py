"""Train, validation and test sides: split rules, domain labels, groups of links, balanced batches."""
