"""One neuron at a time: what drives it, what its rule is worth, what it writes, who writes into it."""
