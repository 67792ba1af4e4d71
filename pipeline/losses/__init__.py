"""Loss terms: pure functions, by name."""
