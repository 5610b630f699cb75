"""Sites written in the formats of others."""
