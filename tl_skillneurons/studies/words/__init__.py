"""Is it words? How selective neurons are for words, and what is left without the strongest."""
