"""``tl-skillneurons prune``: a model that keeps the skill neurons alone, beside such that keep others."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_skillneurons.cli._again import answered, model_again
from tl_skillneurons.cli._app import command
from tl_skillneurons.cli._early import require_can_write, require_model_there
from tl_skillneurons.cli._options import Shown, Where, amounts_of, several

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from tl_skillneurons.find.findings import Findings
    from tl_skillneurons.neurons.neuron_set import NeuronSet
    from tl_skillneurons.report.further import Answer

HELD_AT = ("prompt", "text")
_ARMS = ("skill", "random", "active")


@dataclass(frozen=True)
class Asked:
    """What is kept"""

    keep: Annotated[str, typer.Option(help="Neurons kept per layer, shares or counts: 0.02,0.1.")] = (
        "0.02,0.1"
    )
    held_at: Annotated[
        str, typer.Option(help="The dropped neurons' mean: at the prompt, as in the paper, or at the text.")
    ] = "prompt"
    controls: Annotated[
        int, typer.Option(min=1, help="Models that keep as many random neurons; 19 can give a p of 0.05.")
    ] = 19
    seed: Annotated[int, typer.Option(min=0, help="Of the random neurons.")] = 0
    save: Annotated[
        Path | None, typer.Option(help="Write the model that keeps the first of --keep to this file.")
    ] = None


@command("prune", {"n_random": "--controls", "amount": "--keep"})
def prune(where: Where, asked: Asked, shown: Shown) -> None:
    """Prune the model to its skill neurons: how small, how good, beside models that keep random or active neurons."""
    require_model_there(where.model, where.revision)
    [held_at] = several(asked.held_at, "--held-at", HELD_AT)[:1]
    sizes = amounts_of(asked.keep, "--keep")
    if asked.save is not None:
        if asked.save.exists():
            raise FileExistsError(f"--save {asked.save} is there already; choose another file, or delete it")
        require_can_write(asked.save.parent, "--save")
    settings = {"keep": sizes, "held_at": held_at, "controls": asked.controls, "seed": asked.seed}

    def ask(path: Path) -> "Answer":
        from tl_skillneurons._progress import progress_bar
        from tl_skillneurons.find.folder import load_run
        from tl_skillneurons.report.further import Answer

        findings = load_run(where.run)
        scores = findings.scores
        kept = {name: scores.top(amount) for name, amount in sizes.items()}
        model = model_again(findings, where)
        values = _values(findings, model, held_at)
        whole = _n_parameters(model)
        measure = _Measure(findings)
        intact, found = measure(model), []
        with progress_bar("pruning", len(kept) * (2 + asked.controls)) as advance:
            for name, skill in kept.items():
                for kind, sets in _arms(findings, skill, asked).items():
                    for draw, one in enumerate(sets):
                        smaller = _pruned(model, one, values)
                        of = {"kept": name, "n_kept": len(skill), "neurons": kind, "draw": draw}
                        found.append({**of, **measure(smaller), "parameters": _n_parameters(smaller)})
                        advance(1, note=f"{name}, {kind}")
        notes = [
            f"{findings.task.n_examples['report']} examples of report, mean over the run's prompts. Dropped neurons "
            f"are held at their mean at the {held_at}, everywhere. Random: range over {asked.controls} models with "
            "as many of each layer, two-sided rank p; active: as many with the largest mean activation.",
            "It doesn't show that the dropped neurons were useless for anything else than this task.",
        ]
        numbers: list[dict[str, Any]] = [{"kept": "whole", **intact, "parameters": whole}, *found]
        tables = {"Pruned models": _rows(intact, found, whole)}
        return Answer("prune", "The model pruned to its skill neurons", tables, notes, {"models": numbers})

    answered(where.run, shown, "prune", settings, ask)
    if asked.save is not None:
        _save(where, next(iter(sizes.values())), held_at, asked.save)


def _rows(intact: dict[str, float], found: list[dict[str, Any]], whole: int) -> list[dict[str, Any]]:
    """What is shown: a row for each size and metric."""
    from tl_skillneurons.report.further import fraction, span
    from tl_skillneurons.stats.hypothesis_tests import rank_p_value

    rows = []
    for name in dict.fromkeys(one["kept"] for one in found):
        of_size = [one for one in found if one["kept"] == name]
        for metric, before in intact.items():
            by_kind = {kind: [one[metric] for one in of_size if one["neurons"] == kind] for kind in _ARMS}
            [own], drawn = by_kind["skill"], by_kind["random"]
            row = {"kept": name, "": metric.replace("_", " "), "whole": before, "skill": own}
            row |= {"random": span(min(drawn), max(drawn))}
            row |= {"p": fraction(rank_p_value(own, drawn, "two-sided"), len(drawn))}
            row |= {"active": by_kind["active"][0], "size": f"{of_size[0]['parameters'] / whole:.0%}"}
            rows.append(row)
    return rows


class _Measure:
    """A model's accuracy and logit difference on ``report``, the mean over a run's prompts."""

    def __init__(self, findings: "Findings") -> None:
        self.findings = findings

    def __call__(self, model: "TransformerBridge") -> dict[str, float]:
        import torch

        from tl_skillneurons.prompts.prompted_model import PromptedModel
        from tl_skillneurons.stats.metrics import per_example

        split = self.findings.task.split("report")
        labels = torch.tensor(split["label"])
        found: dict[str, list[float]] = {"accuracy": [], "logit_diff": []}
        for prompt in self.findings.prompts:
            prompted = PromptedModel.for_task(model, prompt, self.findings.task)
            with torch.no_grad():
                logits = prompted.class_logits(list(split["text"])).cpu()
            for metric, values in found.items():
                values.append(per_example(metric, logits, labels).double().mean().item())
        return {metric: sum(values) / len(values) for metric, values in found.items()}


def _arms(findings: "Findings", skill: "NeuronSet", asked: Asked) -> dict[str, list["NeuronSet"]]:
    """What is kept: the skill neurons, as many random ones several times, as many of the most active."""
    import torch

    from tl_skillneurons.neurons.neuron_set import NeuronSet

    scores = findings.scores
    active = torch.stack([scores.mean_absolute(k) for k in range(scores.n_prompts)]).mean(0)
    index = active.argsort(dim=1, descending=True, stable=True)[:, : len(skill) // scores.n_layers]
    layer = torch.arange(scores.n_layers).repeat_interleave(index.shape[1])
    return {
        "skill": [skill],
        "random": [skill.random_like(asked.seed + k, exclude=False) for k in range(asked.controls)],
        "active": [NeuronSet(layer, index.flatten(), scores.n_layers, scores.d_mlp)],
    }


def _values(
    findings: "Findings", model: "TransformerBridge", held_at: str
) -> "Float[Tensor, 'layer neuron']":
    """What dropped neurons are held at: their mean at the prompts, or at the texts without one."""
    import torch

    from tl_skillneurons.scores.predictivity import score_neurons

    scores = findings.scores
    if held_at == "prompt":
        return torch.stack([scores.mean_baseline(k) for k in range(scores.n_prompts)]).mean(0)
    return score_neurons(model, None, findings.task, positions="mean").mean_baseline()


def _pruned(model: "TransformerBridge", keep: "NeuronSet", values: "Float[Tensor, 'layer neuron']") -> Any:
    from tl_skillneurons.models.pruning import prune as cut

    return cut(model, keep, values)


def _n_parameters(model: "TransformerBridge") -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _save(where: Where, amount: float | int, held_at: str, file: Path) -> None:
    """Write the pruned model, and say on stderr where it is and how it is read."""
    from tl_skillneurons.cli._errors import tell
    from tl_skillneurons.find.folder import load_run
    from tl_skillneurons.models.pruned_files import save_pruned

    findings = load_run(where.run)
    model = model_again(findings, where)
    save_pruned(_pruned(model, findings.scores.top(amount), _values(findings, model, held_at)), file)
    tell("Saved:", "green", f"{file}; skn.models.load_pruned({str(file)!r}, base) reads it")
