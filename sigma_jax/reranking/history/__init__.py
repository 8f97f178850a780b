"""Features of the user's history: relations between items, and repeats."""
