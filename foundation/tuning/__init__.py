"""Searches over settings, each trial a run."""
