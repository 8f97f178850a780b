"""Stage `grounding`: item vectors from relevance pairs (section 2.1 of SIGMA)."""
