"""What the command line adds to every run."""
