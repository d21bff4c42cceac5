"""Small base models for the paper's tables on images and text, pre-trained on the pocket world.

`weights/` holds them as ordinary transformers folders. The language models read `texts/`, and
`tasks/` draws the datasets that the bases are adapted to.
"""
