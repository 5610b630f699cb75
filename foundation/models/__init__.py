"""The models that are trained from channels, a file each."""
