"""The tabs of the page, a module each: its layout, and what its buttons do."""
