"""What the two language models read, and what their tasks are made of: the world in sentences."""
