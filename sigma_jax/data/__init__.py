"""From a user's tables to prepared data: sources, checks, histories, splits, pairs, themes."""
