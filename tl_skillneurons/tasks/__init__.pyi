from .chat import Chat as Chat
from .groups import near_duplicates as near_duplicates
from .pairs import minimal_pairs as minimal_pairs
from .roles import ROLES as ROLES
from .sources import load_splits as load_splits
from .subtasks import against_rest as against_rest
from .task import Task as Task
from .two_classes import require_two_classes as require_two_classes
