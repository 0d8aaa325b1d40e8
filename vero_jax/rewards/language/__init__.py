"""English sentences and words without a network, data files or NLTK; and the language of a text."""
