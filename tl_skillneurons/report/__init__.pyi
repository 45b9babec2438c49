from .page import write_page as write_page
from .terminal import numbers as numbers
from .terminal import show as show
