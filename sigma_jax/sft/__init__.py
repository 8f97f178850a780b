"""Stage 3: instructions in plain language -> recommender (section 2.3 of SIGMA)."""
