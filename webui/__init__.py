"""The studio: a web page to train concepts, draw with them and score them."""
