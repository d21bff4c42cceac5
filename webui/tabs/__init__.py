"""The tabs of the page: one module per tab, with its layout and its event handlers."""
