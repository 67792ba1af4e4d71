"""Dictionaries in the formats of other tools."""
