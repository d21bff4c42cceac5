"""Trainings and scorings as processes of their own, their queue and their state."""
