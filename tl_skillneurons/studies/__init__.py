"""Questions asked of whole discoveries: is it stable, what else explains it, does it carry over?"""
