"""The embedded base: a Stable Diffusion in miniature, its world, its recipe and its weights."""
