"""How fast every way of training learns a concept on the pocket base, and what it breaks."""
