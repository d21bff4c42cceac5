"""Train a concept adapter for Stable Diffusion from a few pictures (DreamBooth)."""
