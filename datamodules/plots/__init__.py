"""Figures of sites and channels."""
