"""Training and scoring jobs: their queue, their processes and their state."""
