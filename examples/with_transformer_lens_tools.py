"""Do TransformerLens' own tools see the skill neurons, with a soft prompt attached?

SmolLM2-135M-Instruct on built-in movie reviews: about a minute on two CPU cores, tuning included.
"""

# %% A model, twins with one word changed, a prompt, and the neurons that tell the labels apart
import os
from collections import Counter

import torch
from transformer_lens.patching import generic_activation_patch
from transformer_lens.tools.analysis import (
    attribution_patch,
    direct_logit_attribution,
    fit_sparse_probe,
    logit_lens,
)
from transformer_lens.tools.analysis.interchange import (
    SubspaceInterchange,
    collect_activations,
    intervened_logits,
    neuron_basis,
    random_neuron_basis,
)

import tl_skillneurons as skn
from tl_skillneurons import interop

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer examples and steps, for a quick check
model = skn.load_model("smollm2")
task = skn.minimal_pairs("movie_reviews", n_pairs=24 if SMALL else 120, tokenizer=model.tokenizer)
steps = 2 if SMALL else 45
[prompt] = skn.fit_soft_prompts(model, task, n_virtual_tokens=4, seeds=[0], n_steps=steps)
prompt.requires_grad_(False)
skill = skn.score_neurons(model, prompt, task).top(0.01)
best = skn.NeuronSet.from_pairs(list(skill)[:4], n_layers=skill.n_layers, d_mlp=skill.d_mlp)
random = best.random_like(0)

# %% Rows of token ids, virtual tokens included: the tools pass no mask, so twins of one length
prompted = skn.PromptedModel(model, prompt, task.label_words)
texts = list(task.split("report")["text"])
lengths = [len(ids) for ids in prompted.encode(texts)]
usual = Counter(lengths).most_common(1)[0][0]
texts = [text for text, length in zip(texts, lengths, strict=True) if length == usual][:8]
negative, positive = (interop.token_rows(prompted, texts[label::2]) for label in (0, 1))
ids = prompted.label_ids.tolist()


def metric(logits):
    """Logit of " positive" minus logit of " negative" at the last virtual token."""
    return (logits[:, -1, ids[1]] - logits[:, -1, ids[0]]).mean()


# %% run_with_cache and generic_activation_patch: one neuron at a time, positive into negative
with prompt.attached(model), torch.no_grad():
    logits, cache = model.run_with_cache(positive)
    low, high = float(metric(model(negative))), float(metric(logits))
    print(f"\nlogit diff of {len(positive)} twins: positive {high:.3f}, negative {low:.3f}")
    for name, neurons in (("skill", best), ("random", random)):
        index = interop.patching_index(neurons, [-1])
        patched = generic_activation_patch(
            model, negative, cache, metric, interop.patch_neuron, "post", index_df=index
        )
        recovered = ((patched - low) / (high - low)).tolist()
        print(f"  recovered by {name} neurons, each alone: {[round(r, 4) for r in recovered]}")

# %% interchange: all skill neurons of the layer that has the best one
layer = int(best.layer[0])
index, hook = interop.neuron_index(skill, layer), f"blocks.{layer}.mlp.hook_post"
bases = {
    "skill": neuron_basis(skill.d_mlp, index),
    "random": random_neuron_basis(skill.d_mlp, len(index), seed=0, exclude=index),
}
places = {"positions": torch.full((len(positive),), positive.shape[1] - 1)}
with prompt.attached(model):

    def class_logits(rows):
        return model(rows)[:, -1, ids]

    source = collect_activations(model, hook, positive, class_logits, **places)
    for name, basis in bases.items():
        moved = intervened_logits(
            model, hook, SubspaceInterchange(basis), negative, source, class_logits, **places
        )
        recovered = (float(moved.diff().mean()) - low) / (high - low)
        print(f"  recovered by {basis.shape[1]} {name} neurons of layer {layer} together: {recovered:.4f}")

# %% attribution_patch: a frozen model has no graph, the context gives it one
with prompt.attached(model), interop.with_gradients(model):
    nodes = attribution_patch(model, positive, negative, metric)
print("\nattribution patching, largest of", len(nodes.node_scores), "nodes")
for node, score in nodes.top_nodes(4):
    print(f"  {node.kind:14s} layer {node.layer} head {node.head} position {node.position}: {score:+.4f}")

# %% logit_lens and fit_sparse_probe
with prompt.attached(model):
    lens = logit_lens(model, positive, vocab=ids)
diff = lens.values.diff(dim=-1)[..., 0].mean(1)
print(
    "\nlogit diff through the lens:",
    {lens.labels[i]: round(float(diff[i]), 3) for i in range(0, len(diff), 6)},
)
split = task.split("report")
labels = torch.tensor(split["label"][:])
for name, neurons in (("skill", best), ("random", random)):
    features = skn.prompts.set_activations(model, prompt, split["text"][:], neurons)
    probe = fit_sparse_probe(features, labels, k=1, groups=torch.tensor(split["pair"][:]))
    print(f"  probe of one of {len(neurons)} {name} neurons: accuracy {probe.metrics.accuracy:.3f}")

# %% get_neuron_results, stack_head_results, and direct_logit_attribution (which needs compatibility mode)
direction = model.W_U[:, ids[1]] - model.W_U[:, ids[0]]
written = cache.get_neuron_results(layer, neuron_slice=index, pos_slice=-1) @ direction
heads, names = cache.stack_head_results(pos_slice=-1, return_labels=True)
along = (heads @ direction).mean(1)
total = float(written.sum(1).mean())
print(f"\nwritten along the label words by {len(index)} skill neurons of layer {layer}: {total:.4f}")
print("most by a head:", {names[i]: round(float(along[i]), 4) for i in along.abs().topk(3).indices.tolist()})
model.enable_compatibility_mode()  # rewrites the weights, with the same probabilities
model.requires_grad_(False)
with prompt.attached(model):
    direct = direct_logit_attribution(model, positive, ids[1], ids[0])
print("direct logit attribution, largest:", [(name, round(value, 3)) for name, value in direct.top(4)])

# %% What this does not show: anything beyond these few twins; one random draw is a glance, not a null distribution.
# A neuron that moves the answer when patched alone may be one of many that would.
