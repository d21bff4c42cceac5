"""Scores of generated pictures: DINO, CLIP-I and CLIP-T, and a report that shows them."""
