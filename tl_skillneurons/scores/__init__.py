"""How well each neuron tells labels apart: scores, what luck gives, and which neurons are chosen."""
