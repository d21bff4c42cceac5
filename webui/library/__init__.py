"""The concepts there are: their files, what they tell, and how they leave and are scored."""
