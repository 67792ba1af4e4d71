"""Tests of initialization."""
