"""The routes under /v1: recommendations, users and events, items, jobs, changes, experiments."""
