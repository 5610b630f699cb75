"""Benchmarks, baselines scored at tests, and figures."""
