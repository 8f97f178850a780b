"""Experiments: users are split over arms, exposures are logged, and a report compares the arms."""
