"""Sparsity losses, one file each: the file tanh_quad.py holds the loss called tanh-quad."""
