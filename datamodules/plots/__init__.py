"""Pictures of sites and channels."""
