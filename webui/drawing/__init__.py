"""Drawing with the base and with concepts, and the album of drawn pictures."""
