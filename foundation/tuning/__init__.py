"""Hyperparameter search, in which each trial is a run."""
