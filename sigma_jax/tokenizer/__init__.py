"""Stage 2: item vectors to semantic IDs (section 2.2 of SIGMA)."""
