"""What a page shows of a training while it runs."""
