"""Every shipped concept on the pocket base, LoLDU beside LoRA: what is learned, what is lost."""
