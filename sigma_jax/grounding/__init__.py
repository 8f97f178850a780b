"""Stage 1: relevance pairs to item vectors (section 2.1 of SIGMA)."""
