"""What a base station and its users are, in memory and on disk."""
