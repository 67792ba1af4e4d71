"""Neuronpedia: the features of a dictionary as upload batches of the site's API, as its bulk files, and in Arrow form."""
