"""A TransformerBridge: loading it, where its neurons are, its tokenizer, its batches, and what is kept of its texts."""
