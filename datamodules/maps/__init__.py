"""Maps of buildings as images, and augmentation by symmetries."""
