"""Loss functions of pre-training."""
