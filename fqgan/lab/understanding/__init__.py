"""A language model reads what a tokenizer makes of pictures: LLaVA's first stage (paper, appendix D)."""

EXTRA = "understanding"
"""The extra of the package that the study needs: `pip install 'fqgan[understanding]'`."""
