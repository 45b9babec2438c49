"""Find skill neurons of language models with TransformerLens."""
