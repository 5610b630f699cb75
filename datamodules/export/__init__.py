"""Export of sites to the formats of DeepMIMO and WAIR-D."""
