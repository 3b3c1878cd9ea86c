"""Frozen pretrained networks: teachers and perceptual distances, loaded in one place."""
