"""Classifiers baked into a model repository: fixed labels, answered from the image alone."""
