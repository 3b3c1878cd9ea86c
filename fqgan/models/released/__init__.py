"""The files that FQGAN's and LlamaGen's authors released: recognised, read into our models, and written."""
