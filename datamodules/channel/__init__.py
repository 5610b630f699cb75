"""Pure channel math: arrays, synthesis from rays, codebooks, impairments, motion and transforms."""
