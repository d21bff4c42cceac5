"""Downstream tasks from the world that the bases were pre-trained on."""
