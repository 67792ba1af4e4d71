"""Tests of pipeline/activation_functions."""
