"""Stage `tokenizer`: semantic IDs from item vectors (section 2.2 of SIGMA)."""
