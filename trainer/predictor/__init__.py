"""Train a predictor: a network that reads concepts of one base off pictures."""
