"""Published DeepMIMO scenarios, versions 3 and 4."""
