"""What the data contracts share: digests of their content, and where they come from."""
