"""The world in sentences: texts for the two language models, and material for their tasks."""
