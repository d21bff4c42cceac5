"""A concept in a second: a network that reads a concept's diagonals off its pictures."""
