"""Sources: where channels come from."""
