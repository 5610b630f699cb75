"""Models trained on channels, one module each."""
