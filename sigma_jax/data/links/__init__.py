"""Texts and the items that belong to them: queries, themes, knowledge, and relevance pairs."""
