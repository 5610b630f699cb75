"""Baselines without a neural network: the reference values that every learned result is compared with."""
