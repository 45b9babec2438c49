"""What a model writes under hooks, and what is measured of it: its price under the untouched model, and judgements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hook, Hooks
from tl_skillneurons.prompts._cut import ANSWER
from tl_skillneurons.prompts.positions import PLACES, ActsAt
from tl_skillneurons.prompts.prompted_model import PromptedModel
from tl_skillneurons.studies.steering.curve import Key, Values
from tl_skillneurons.studies.steering.kept import Written
from tl_skillneurons.studies.steering.measures import Reader
from tl_skillneurons.studies.steering.numbers import answer_losses, is_empty, repeated_share
from tl_skillneurons.studies.steering.options import SteeringOptions


@dataclass(frozen=True)
class Judged:
    """Every measure of every answer: untouched, with neurons steered, and along rivals in their place."""

    untouched: Values
    neurons: dict[Key, Values]
    rivals: dict[Key, Values]


@dataclass(frozen=True)
class Said:
    """What was written: untouched, with neurons steered, and along rivals in their place, which went as far as the
    ``norms`` of a set at a dose in each layer."""

    untouched: Written
    neurons: dict[Key, Written]
    rivals: dict[Key, Written]
    norms: dict[tuple[str, int], dict[int, float]]

    def judged(self, readers: Mapping[str, Reader], special: frozenset[int]) -> Judged:
        """What was measured of it; each different answer is judged once."""
        every = (self.untouched, *self.neurons.values(), *self.rivals.values())
        said = list(dict.fromkeys(answer for one in every for answer in one["answers"]))
        judged = {name: dict(zip(said, read(said).tolist(), strict=True)) for name, read in readers.items()}
        return Judged(
            measured(self.untouched, judged, special),
            {key: measured(one, judged, special) for key, one in self.neurons.items()},
            {key: measured(one, judged, special) for key, one in self.rivals.items()},
        )


def write(writer: PromptedModel, texts: list[str], options: SteeringOptions, hooks: Hooks) -> Written:
    """What the model writes with these hooks, and its cross-entropy without them."""
    done = writer.generate(
        texts,
        options.max_new_tokens,
        interventions=list(hooks),
        temperature=options.temperature,
        seed=options.seed,
    )
    losses = written_losses(writer, texts, done.token_ids)
    return {
        "answers": list(done.answers),
        "token_ids": [list(ids) for ids in done.token_ids],
        "cross_entropy": losses.tolist(),
    }


def written_losses(
    writer: PromptedModel, texts: Sequence[str], token_ids: Sequence[Sequence[int]]
) -> Float[Tensor, " text"]:
    """Cross-entropy of what was written after each text, its end token included, under the untouched model: nats per
    token, float64.

    Args:
        writer: Without a prompt.
        token_ids: As :class:`~tl_skillneurons.prompts.Completions` has them.

    Example:
        >>> done = plain.generate(texts)
        >>> written_losses(plain, texts, done.token_ids)
    """
    asked = writer.encode(texts)
    ids = [text + [ANSWER + i for i in answer] for text, answer in zip(asked, token_ids, strict=True)]
    found = torch.empty(len(ids), dtype=torch.float64)
    with writer.attached() as virtual, torch.no_grad():

        def read(batch: list[int]) -> None:
            tokens = writer.assemble([ids[i] for i in batch], batch)
            assert tokens.is_generated is not None  # for type checkers: every answer has a token
            logits = writer.forward(tokens, virtual)
            found[batch] = answer_losses(logits, tokens.ids, tokens.is_generated)

        run_batches(writer.batches(ids), read)
    return found


def change_norms(
    writer: PromptedModel,
    texts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    hooks: Sequence[Hook],
    positions: str,
) -> dict[int, float]:
    """How far hooks move what stands at each of their hook points, while the model writes just this: the Euclidean norm
    over neurons of the change that they make there, averaged over all positions at which they act, of all texts.

    Nothing is written: the model reads the texts and what was written with the hooks on. The last token of an answer is
    never read by the model that writes it, so it is left out.

    Args:
        hooks: One at ``blocks.{layer}.mlp.hook_post`` of each layer that has any.
        positions: Where they act: "generated", "text" or "all".

    Returns:
        By layer; 0 where there is no such position.
    """
    asked = writer.encode(texts)
    ids = [text + [ANSWER + i for i in answer[:-1]] for text, answer in zip(asked, token_ids, strict=True)]
    long = [k for k, answer in enumerate(token_ids) if len(answer) > 1 or positions != "generated"]
    total = dict.fromkeys((name for name, _ in hooks), 0.0)
    n_positions = 0
    with writer.attached() as virtual, torch.no_grad():

        def read(batch: list[int]) -> None:
            nonlocal n_positions
            numbers = [long[k] for k in batch]
            tokens = writer.assemble([ids[k] for k in numbers], numbers)
            here = tokens.of_kind(positions)
            before: dict[str, Tensor] = {}
            moved: dict[str, float] = {}

            def keep(act: Tensor, hook: Any, name: str) -> None:
                before[name] = act

            def add(act: Tensor, hook: Any, name: str) -> None:
                change = (act.double() - before.pop(name).double()).norm(dim=-1)
                moved[name] = float(change[here.to(act.device)].sum())

            around: list[Hook] = []
            for name, function in hooks:
                around += [(name, _named(keep, name)), (name, function), (name, _named(add, name))]
            writer.forward(tokens, virtual, around)
            n_positions += int(here.sum())
            for name, of in moved.items():
                total[name] += of

        if long:
            apart = not all(isinstance(f, ActsAt) and f.positions in PLACES for _, f in hooks)
            alone = [[k] for k in range(len(long))]  # what may look at other positions sees no padding
            run_batches(alone if apart else writer.batches([ids[k] for k in long]), read)
    return {int(name.split(".")[1]): of / max(1, n_positions) for name, of in total.items()}


def _named(function: Any, name: str) -> Any:
    return lambda act, hook: function(act, hook, name)


def measured(written: Written, judged: Mapping[str, Mapping[str, float]], special: frozenset[int]) -> Values:
    """Every measure of every answer; what was judged is known of each different answer."""
    answers = written["answers"]
    own = [[i for i in ids if i not in special] for ids in written["token_ids"]]
    found = {
        name: torch.tensor([of[answer] for answer in answers], dtype=torch.float64)
        for name, of in judged.items()
    }
    found["cross_entropy"] = torch.tensor(written["cross_entropy"], dtype=torch.float64)
    found["repeated"] = torch.tensor([repeated_share(ids) for ids in own], dtype=torch.float64)
    found["empty"] = torch.tensor([float(is_empty(one)) for one in answers], dtype=torch.float64)
    return found
