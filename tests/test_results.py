"""How every public result shows itself: on one screen, without dumped tensors, and escaped in a notebook."""

import dataclasses
import importlib
import inspect

import pytest
import torch

from tl_skillneurons._results import html_of_fields, short_repr
from tl_skillneurons.stats.chance import best_of_chance
from tl_skillneurons.tasks.task import Task

ROOMS = "attention find interventions models plots prompts scores stats studies tasks".split()


def public_classes():
    for room in ROOMS:
        offered = importlib.import_module(f"tl_skillneurons.{room}")
        for name in offered.__all__:
            if inspect.isclass(value := getattr(offered, name)):
                yield pytest.param(value, id=f"{room}.{name}")


@pytest.mark.parametrize("result", list(public_classes()))
def test_no_public_value_dumps_its_tensors_and_every_table_shows_itself_in_a_notebook(result):
    if not dataclasses.is_dataclass(result):
        return
    holds_tensors = any(
        "Tensor" in str(field.type) and "Callable" not in str(field.type)
        for field in dataclasses.fields(result)
        if field.repr
    )
    generated = "repr_fn" in result.__repr__.__code__.co_name or hasattr(result.__repr__, "__wrapped__")
    assert not (holds_tensors and generated), "give it __repr__ = short_repr"
    if holds_tensors or hasattr(result, "to_dataframe"):
        assert hasattr(result, "_repr_html_"), "give it _repr_html_"


@dataclasses.dataclass
class Result:
    values: torch.Tensor
    names: tuple[str, ...] = ("<b>a</b>",)
    many: list[int] = dataclasses.field(default_factory=lambda: list(range(500)))
    share: float = 0.25
    __repr__ = short_repr
    _repr_html_ = html_of_fields


def test_tensors_and_long_lists_are_told_by_their_size():
    one = Result(torch.zeros(300, 400))
    assert repr(one) == "Result(values=Tensor[300, 400], names=('<b>a</b>',), many=list of 500, share=0.25)"
    html = one._repr_html_()
    assert "&lt;b&gt;a" in html and "<b>a" not in html and "Tensor[300, 400]" in html and len(html) < 2000


def test_a_task_and_a_level_of_luck_show_themselves():
    texts = [f"text {k}" for k in range(20)]
    task = Task.from_texts(texts, [k % 2 for k in range(20)], label_names=["<i>bad</i>", "good"], name="toy")
    assert repr(task) == (
        "Task(name='toy', labels=['<i>bad</i>', 'good'], train=12, baseline=12, select=4, report=4)"
    )
    assert "&lt;i&gt;bad" in task._repr_html_() and "<i>" not in task._repr_html_()
    assert "largest_class_share" in best_of_chance(20, 5)._repr_html_()
