"""The three steps of section 2.4 of SIGMA: prefixes, items inside each, one ranking."""
