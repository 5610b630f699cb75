"""Sites, their links and environments, in memory and on disk."""
