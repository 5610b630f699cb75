"""Benchmarks, controls and pictures."""
