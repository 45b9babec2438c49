from .findings import Findings as Findings
from .folder import load_run as load_run
from .phases import find_skill_neurons as find_skill_neurons
