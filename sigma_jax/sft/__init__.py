"""Stage `sft`: instructions in plain language to recommendations (section 2.3 of SIGMA)."""
