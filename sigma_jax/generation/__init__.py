"""Three-step item generation (section 2.4 of SIGMA): prefixes, items inside them, fusion."""
