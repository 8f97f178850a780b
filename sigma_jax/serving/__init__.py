"""A trained recommender outside its workdir: exported, asked, its catalogue changed."""
