from .terminal import numbers as numbers
from .terminal import show as show
