"""DreamBooth training of a concept adapter for Stable Diffusion."""
