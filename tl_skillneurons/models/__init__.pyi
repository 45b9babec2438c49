from .input_cache import InputCache as InputCache
from .loading import load_model as load_model
from .packaged import packaged_model as packaged_model
from .pruned_files import export_pruned as export_pruned
from .pruned_files import load_pruned as load_pruned
from .pruned_files import save_pruned as save_pruned
from .pruning import prune as prune
from .shuffled import shuffle_layers as shuffle_layers
