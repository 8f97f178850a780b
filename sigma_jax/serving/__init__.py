"""A trained recommender outside its workdir: its export, its catalogue, answers to requests."""
