"""Text sources, packing and the token store."""
