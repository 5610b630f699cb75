"""The WAIR-D data set."""
