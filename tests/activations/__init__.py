"""Tests of the activation store."""
