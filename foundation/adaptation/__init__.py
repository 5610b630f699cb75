"""Adaptation of pre-trained models to other tasks and to other domains."""
