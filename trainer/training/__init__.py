"""A training run, from cached pictures to its last step."""
