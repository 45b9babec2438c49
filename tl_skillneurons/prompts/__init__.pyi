from .activations import neuron_activations as neuron_activations
from .positions import PromptedTokens as PromptedTokens
from .prompted_model import PromptedModel as PromptedModel
from .soft_prompt import SoftPrompt as SoftPrompt
from .tuning.fit import fit_soft_prompts as fit_soft_prompts
