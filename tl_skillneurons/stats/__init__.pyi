from .chance import ChanceLevel as ChanceLevel
from .chance import best_of_chance as best_of_chance
