"""Stage 2: semantic IDs from item vectors (section 2.2 of SIGMA)."""
