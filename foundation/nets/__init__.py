"""Encoders and networks."""
