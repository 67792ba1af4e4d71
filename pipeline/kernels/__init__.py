"""The sparse products that dictionaries are made of."""
