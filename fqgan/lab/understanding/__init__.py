"""A language model reads what a tokenizer makes of pictures: LLaVA's first stage (paper, appendix D)."""
