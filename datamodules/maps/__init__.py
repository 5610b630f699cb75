"""Buildings as images, and the world turned, mirrored and stretched."""
