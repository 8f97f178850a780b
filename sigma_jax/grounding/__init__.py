"""Stage 1: item vectors from relevance pairs (section 2.1 of SIGMA)."""
