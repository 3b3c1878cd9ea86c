"""A small classifier of one's own, whose features measure images."""
