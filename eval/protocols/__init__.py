"""Evaluation protocols: subjects, prompts, pictures and how they are scored."""
