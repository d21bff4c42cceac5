"""Trainings as processes of their own, their queue and their state."""
