"""Pictures of the base and of concepts, and the album they are kept in."""
