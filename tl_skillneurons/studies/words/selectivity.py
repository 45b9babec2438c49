"""Are neurons selective for words rather than for the task? (Wang et al., 2022, section 5.3)

Two looks at each neuron, each beside its chance:

- **Weights**: the words whose embeddings point along its input weights, and along its output weights, with the cosine
  that random neurons of the same layers reach. Embeddings are taken raw, without the norms and layers in between.
- **Activations**: how far the presence of one word in the text goes with the activation at the prompt positions
  (point-biserial correlation), over all words that stand in enough texts. The null shuffles the texts' activations and
  takes the largest correlation of all words, which corrects for their number. Texts that belong together
  (:meth:`~tl_skillneurons.tasks.Task.units`) stay so: whole units change places with units of as many texts, and the
  texts of each among themselves. That is exact, but a unit of whose size there is no other stays where it is: what a
  word says of it as a whole is the same in every permutation, so that p cannot become small by it. Where that holds
  for more than 5 % of the texts a warning says for how many, and where it holds for more than half the test is
  refused. Beside it stands the correlation with the label, and with the text's length.

Presence is 0 or 1, so the correlation needs sums over the texts that have a word and nothing else. With ``n`` of ``N``
texts having it and ``u`` the activations centred and scaled to length 1::

    r = (sum of u over the texts with the word) / sqrt(n (1 - n / N))

What is kept is therefore each text's distinct words and a few columns of all words at a time, never texts x words.

Flags: ``token_detector`` where one word explains at least as much as the label, and beyond chance; ``length_neuron``
likewise for the number of tokens; ``position_neuron`` where a token's place in the text explains much of the
activation at the text's own tokens (:mod:`~tl_skillneurons.studies.words.position_share`); ``dead`` where the
activation at the prompt positions never changes. Long texts have more words, so one that follows length can be called
all of these.

What it does not show: a neuron can follow a set of words, each of which explains little. Texts without the strongest
words (:mod:`~tl_skillneurons.studies.words.without_words`, ``minimal_pairs(disjoint_words=True)``) tell more. Controls
are shuffled texts for the activations and random neurons for the weights, none twice for one neuron.
"""

import warnings
from collections.abc import Iterable
from functools import cache, partial

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tl_skillneurons._checks import require_int, require_seed
from tl_skillneurons._widths import even
from tl_skillneurons.models.records import model_record
from tl_skillneurons.models.sites import neuron_shape
from tl_skillneurons.neurons.choice import require_apart
from tl_skillneurons.neurons.controls import distinct_draws, few_alternatives
from tl_skillneurons.neurons.neuron_set import Neurons, NeuronSet, as_neurons
from tl_skillneurons.prompts.activations import set_activations
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.prompts.run import RunOptions, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.tuning.schedule import embedding_rows
from tl_skillneurons.stats.hypothesis_tests import rank_p_value, require_draws
from tl_skillneurons.stats.ranks import median
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies._common import settings_of
from tl_skillneurons.studies.words.position_share import position_share
from tl_skillneurons.studies.words.presence import unit_columns, word_correlations, word_presence
from tl_skillneurons.tasks.task import Task

ALPHA = 0.05
"""The level of the flags; p-values are corrected for the number of words."""
_MANY = 0.05  # of the texts: from here on it is worth a warning that their units stay in place
_MOST_NUMBERS = 2**22  # of one chunk of columns: 32 MB in float64


def word_selectivity(
    model: TransformerBridge,
    prompt: SoftPrompt,
    task: Task,
    neurons: Neurons,
    *,
    role: str = "report",
    min_texts: int = 5,
    n_permutations: int = 1000,
    position_threshold: float | int = 0.5,
    seed: int = 0,
    max_length: int | None = None,
    on_chosen_examples: bool = False,
    run: RunOptions = RunOptions(),
) -> pd.DataFrame:
    """What words say about each neuron's activation at the prompt positions, averaged over them.

    Args:
        min_texts: A word counts when it stands in, and is absent from, at least so many texts.
        n_permutations: Of the texts' activations by the task's units, the same for all neurons.
        position_threshold: The share of the variance from which on a neuron is called a position neuron.
        seed: Draws the permutations.
        max_length: Longest sequence in tokens; by default what the prompt was tuned with. Words behind a cut count as
            present though the model doesn't see them.
        on_chosen_examples: Measure though some of these texts chose the neurons; every row then says so.

    Returns:
        One row per neuron: ``word``, ``word_r`` and its corrected ``p_word``; ``label_r`` (of class 1 against the rest
        for two classes, otherwise of the class it follows most); ``length_r`` and ``p_length``; ``position_share``,
        which is about the text's own tokens; the flags ``token_detector``, ``length_neuron``, ``position_neuron``,
        ``dead``; ``n_words`` tested, ``role``, ``n_examples``. ``frame.attrs`` has the settings, and
        the ``unit`` of the permutations, how many there are (``n_units``), and how many of them are of a size that no
        other has (``n_fixed``), which only their own texts change places in.
        ``neurons_chosen`` "on other examples", "on these examples" (by insistence) or "unknown".

    Raises:
        ValueError: When no word stands in enough texts, for too few permutations for :data:`ALPHA`, for a
            ``position_threshold`` outside (0, 1], for neurons that these texts chose, or when more than half of the
            texts are of units whose size no other has.

    Example:
        >>> frame = skn.studies.word_selectivity(model, prompt, task, skill)
        >>> frame[["word", "word_r", "p_word", "label_r", "token_detector"]]
    """
    neurons = as_neurons(neurons)
    require_draws(n_permutations, ALPHA, name="n_permutations")
    require_int(min_texts, "min_texts")
    require_seed(seed)
    if not 0 < position_threshold <= 1:
        raise ValueError(f"position_threshold is a share and must be in (0, 1], got {position_threshold}")
    split = task.split(role)
    texts = list(split["text"])
    by = "on_chosen_examples=True"
    where_chosen = require_apart(neurons.choice, texts, insist=on_chosen_examples, by=by)
    units = task.units(role)
    n_fixed = _require_movable(units, role)
    words, present = word_presence(texts, min_texts)
    require_tuned_for(prompt, task)
    prompted = PromptedModel(model, prompt, max_length=max_length, run=run)
    lengths = torch.tensor([len(ids) for ids in prompted.cut(prompted.encode(texts))], dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.tensor(split["label"]), task.n_classes).double()
    labels = labels[:, 1:] if task.n_classes == 2 else labels
    acts = set_activations(model, prompt, texts, neurons, max_length=max_length, run=run)
    by_place = position_share(model, prompt, texts, neurons, max_length=max_length, run=run)
    a = unit_columns(acts)
    dead = (a == 0).all(0)
    of_labels = a.T @ unit_columns(labels)
    label_r = of_labels.gather(1, of_labels.abs().argmax(1)[:, None])[:, 0]
    unit_length = unit_columns(lengths[:, None])[:, 0]
    length_r = a.T @ unit_length
    best, word_r, reached = _against_shuffled(a, present, unit_length, length_r, n_permutations, seed, units)
    p = (1 + reached) / (1 + n_permutations)
    frame = pd.DataFrame(
        {
            "layer": neurons.layer.numpy(),
            "index": neurons.index.numpy(),
            "word": [words[i] for i in best.tolist()],
            "word_r": word_r.numpy(),
            "p_word": p[0].numpy(),
            "label_r": label_r.numpy(),
            "length_r": length_r.numpy(),
            "p_length": p[1].numpy(),
            "position_share": by_place.numpy(),
            "dead": dead.numpy(),
        }
    )
    strong = frame.word_r.abs() >= frame.label_r.abs()
    frame["token_detector"] = strong & (frame.p_word <= ALPHA) & ~frame.dead
    long = frame.length_r.abs() >= frame.label_r.abs()
    frame["length_neuron"] = long & (frame.p_length <= ALPHA) & ~frame.dead
    frame["position_neuron"] = (frame.position_share >= position_threshold) & ~frame.dead
    frame = frame.assign(n_words=len(words), role=role, n_examples=len(texts), neurons_chosen=where_chosen)
    counts = {"min_texts": min_texts, "n_permutations": n_permutations, "seed": seed}
    thresholds = {"alpha": ALPHA, "position_threshold": position_threshold}
    of_units = {"unit": units.what, "n_units": len(units), "n_fixed": n_fixed}
    frame.attrs |= settings_of(
        model, task, [prompt], **counts, **thresholds, **of_units, max_length=prompted.max_length
    )
    return frame


def _against_shuffled(
    a: Float[Tensor, "text neuron"],
    present: Float[Tensor, "word text"],
    unit_length: Float[Tensor, " text"],
    length_r: Float[Tensor, " neuron"],
    n_permutations: int,
    seed: int,
    units: Units,
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, " neuron"], Float[Tensor, "kind neuron"]]:
    """Each neuron's strongest word and its correlation; and in how many permutations of the texts' activations some
    word, and the length, goes as well with it."""
    n_neurons = a.shape[1]
    of_one_size = _units_by_size(units)
    best = torch.empty(n_neurons, dtype=torch.int64)
    word_r = torch.empty(n_neurons, dtype=torch.float64)
    reached = torch.zeros(2, n_neurons, dtype=torch.float64)
    # columns at a time, which are neurons in the order of one permutation
    most = max(1, _MOST_NUMBERS // max(present.shape))
    for columns in torch.arange(n_neurons).split(most):
        own = a[:, columns]
        of_words = word_correlations(present, own)
        best[columns] = of_words.abs().argmax(0)
        word_r[columns] = of_words.gather(0, best[columns][None])[0]
        generator = torch.Generator().manual_seed(seed)  # the same for all
        for start in range(0, n_permutations, chunk := max(1, most // len(columns))):
            size = min(chunk, n_permutations - start)
            orders = [_shuffled_texts(of_one_size, generator) for _ in range(size)]
            shuffled = rearrange(own[torch.stack(orders, 1)], "text draw neuron -> text (draw neuron)")
            largest = word_correlations(present, shuffled).abs().amax(0)
            by_length = (unit_length @ shuffled).abs()
            for kind, drawn, found in ((0, largest, word_r), (1, by_length, length_r)):
                drawn = rearrange(drawn, "(draw neuron) -> draw neuron", draw=size)
                reached[kind, columns] += (drawn >= found[columns].abs() - 1e-9).sum(0)
    return best, word_r, reached


def _require_movable(units: Units, role: str) -> int:
    """How many units are of a size that no other has, with a warning of them.

    Raises:
        ValueError: When more than half of the texts are theirs.
    """
    sizes, how_many = units.sizes.unique(return_counts=True)
    alone = sizes[(how_many == 1) & (len(units) > 1)]
    n_texts = int(alone.sum())
    told = (
        f"{len(alone)} of {len(units)} units ({units.what}) of role {role!r}, with {n_texts} of {units.n_examples} "
        "texts, are of a size that no other unit has, so that they can't change places with another"
    )
    if 2 * n_texts > units.n_examples:
        raise ValueError(
            f"{told}: what a word says of them as a whole can't be tested; limit their texts to equally many of each, "
            "or give more units"
        )
    if n_texts > _MANY * units.n_examples:
        warnings.warn(f"{told}; of words that follow them as a whole p is too large", stacklevel=3)
    return len(alone)


def _units_by_size(units: Units) -> list[Int[Tensor, "unit text"]]:
    """The rows of each unit's texts, in one table for each number of texts that units have."""
    rows = units.member.argsort(stable=True).split(units.sizes.tolist())
    return [torch.stack([own for own in rows if len(own) == size]) for size in units.sizes.unique().tolist()]


def _shuffled_texts(
    of_one_size: list[Int[Tensor, "_ _"]], generator: torch.Generator
) -> Int[Tensor, " text"]:
    """A random order in which units stand in each other's places, and the texts of each in any order."""
    order = torch.empty(sum(table.numel() for table in of_one_size), dtype=torch.int64)
    for table in of_one_size:
        placed = table[torch.randperm(len(table), generator=generator)]
        if table.shape[1] > 1:
            placed = placed.gather(1, torch.rand(table.shape, generator=generator).argsort(1))
        order[table.flatten()] = placed.flatten()
    return order


def weight_words(
    model: TransformerBridge, neurons: Neurons, *, n_words: int = 5, n_random: int = 20, seed: int = 0
) -> pd.DataFrame:
    """The words nearest to each neuron's input and output weights, by the absolute cosine with their embeddings.

    Args:
        n_words: Words to name for each side.
        n_random: So many other neurons of its layer beside each, none twice; all where there are fewer.
        seed: Of the first draw.

    Returns:
        One row per neuron and side ("in": the projection into it, of gated MLPs its gate; "out"): ``words`` (a minus
        before those it points away from), ``cosine`` of the first, ``random_median`` and ``p_random``, how often
        random neurons of the same layer come as near: (1 + draws) / (1 + draws in all). ``frame.attrs`` has the
        settings, the ``smallest_p`` that the draws allow, and ``warnings`` of too few.

    Raises:
        ValueError: For neurons of another model, an empty set, or too few draws.

    Example:
        >>> skn.studies.weight_words(model, skill)[["layer", "index", "side", "words", "cosine", "p_random"]]
    """
    neurons = as_neurons(neurons)
    require_seed(seed)
    require_draws(n_random)
    require_int(n_words, "n_words")
    n_layers, width = neuron_shape(model)
    shape = n_layers, even(width, "reading words off weights")
    neurons.require_fits(*shape)
    if not len(neurons):
        raise ValueError("neurons must hold at least one neuron, got none")
    whole = NeuronSet(neurons.layer, neurons.index, *shape, neurons.model)
    stand_ins = _stand_ins(whole, n_random, seed)
    rows = []
    for side, words in _embeddings(model).items():
        own = _directions(_weights(model, whole, side)) @ words.T
        nearest = own.abs().topk(n_words, dim=1).indices
        for number, (layer, index) in enumerate(whole):
            near = nearest[number].tolist()
            names = model.tokenizer.convert_ids_to_tokens(near)
            signed = [
                f"-{name}" if own[number, i] < 0 else str(name) for i, name in zip(near, names, strict=True)
            ]
            first = float(own[number, near[0]])
            others = _directions(_weights(model, [(layer, i) for i in stand_ins[number]], side))
            random = (others @ words.T).abs().amax(1)
            rows.append(
                {
                    "layer": layer,
                    "index": index,
                    "side": side,
                    "words": " ".join(signed),
                    "cosine": first,
                    "random_median": median(random),
                    "p_random": rank_p_value(abs(first), random, "greater"),
                }
            )
    frame = pd.DataFrame(rows)
    fewest = min(map(len, stand_ins))
    few = few_alternatives(fewest, n_random)
    frame.attrs |= {"model": model_record(model), "n_words": n_words, "n_random": n_random, "seed": seed}
    frame.attrs |= {"smallest_p": 1 / (1 + fewest), "warnings": [few] if few else []}
    return frame


def _stand_ins(neurons: NeuronSet, n: int, seed: int) -> list[list[int]]:
    """For each neuron ``n`` distinct others of its layer that are none of the set, or all there are: in the draws
    ``random_like(seed)``, ``random_like(seed + 1)``, ... those that stand for it."""
    draw = cache(neurons.random_like)
    counts = neurons.counts_per_layer()
    draw(seed)  # refuses what can't be drawn
    assert isinstance(neurons.d_mlp, int)  # for type checkers

    def one_of(number: int, own_seed: int) -> int:
        return int(draw(own_seed).index[number])

    return [
        distinct_draws(
            partial(one_of, number),
            min(n, neurons.d_mlp - counts[layer]),
            seed=seed,
        )
        for number, (layer, _) in enumerate(neurons)
    ]


def _directions(rows: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _embeddings(model: TransformerBridge) -> dict[str, Float[Tensor, "word d_model"]]:
    """Directions of the words going in and coming out, the latter by the vocabulary projection where it has one."""
    n_known = min(model.W_E.shape[0], model.cfg.d_vocab)
    embedding = embedding_rows(model, torch.arange(n_known)).detach().float().cpu()
    unembedding = embedding
    W_U = getattr(model, "W_U", None)
    if W_U is not None and W_U.shape == (model.cfg.d_model, embedding.shape[0]):
        unembedding = W_U.detach().float().cpu().T
    return {"in": _directions(embedding), "out": _directions(unembedding)}


def _weights(
    model: TransformerBridge, neurons: Iterable[tuple[int, int]], side: str
) -> Float[Tensor, "neuron d_model"]:
    """Each neuron's weights going in (of gated MLPs those of the gate) or coming out."""
    rows = []
    for layer, index in neurons:
        mlp = model.blocks[layer].mlp
        if side == "out":
            rows.append(mlp.W_out.detach()[index].float().cpu())
        else:
            gate = getattr(mlp, "W_gate", None)
            rows.append((mlp.W_in if gate is None else gate).detach()[:, index].float().cpu())
    return torch.stack(rows)
