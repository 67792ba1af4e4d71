"""Tests of pipeline.lm."""
