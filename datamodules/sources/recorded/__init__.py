"""Measured CSI."""
