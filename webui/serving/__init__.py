"""Pictures for other programs: requests with different concepts, drawn in one pass of one base."""
