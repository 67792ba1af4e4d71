"""Dictionaries in the formats of other tools: export and import. One file a format; plain.py is what they all go through."""
