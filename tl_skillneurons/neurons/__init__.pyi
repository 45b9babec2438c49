from .neuron_set import NeuronSet as NeuronSet
from .overlap import Overlap as Overlap
