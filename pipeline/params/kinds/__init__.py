"""The dictionary section of each kind of dictionary."""
