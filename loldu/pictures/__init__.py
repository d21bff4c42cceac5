"""The pictures people bring: open, crop, caption and mask them."""
