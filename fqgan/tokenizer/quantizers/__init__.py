"""Quantizers of a factor."""
