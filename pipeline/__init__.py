"""Scopeline's core: everything that the stages share."""
