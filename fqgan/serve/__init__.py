"""Trained models behind a web server."""
