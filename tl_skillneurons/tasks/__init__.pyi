from .pairs import minimal_pairs as minimal_pairs
from .task import Task as Task
