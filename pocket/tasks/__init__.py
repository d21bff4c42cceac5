"""Tasks to fine-tune the pocket bases on, made from the same world."""
