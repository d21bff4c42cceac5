"""The embedded base: a Stable Diffusion in miniature, with its world, pre-training and weights."""
