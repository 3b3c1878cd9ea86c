"""Frozen pretrained networks: teachers, perceptual distances, and what measures images."""
