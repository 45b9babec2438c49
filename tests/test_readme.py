"""The README's code runs, so its names can't drift."""

import re
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from datasets import Dataset
from tiny import bridge

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def small(skn, monkeypatch):
    """A tiny model behind ``load_model`` that knows the README's label words, and few twins that it can read."""
    model = bridge("llama")
    real = skn.minimal_pairs

    def fewer(kind, *, n_pairs, tokenizer):
        assert kind == "movie_reviews" and tokenizer is model.tokenizer
        rows = [
            {"text": text, "label": planted.label_of(text), "pair": number}
            for number, pair in enumerate(planted.twins(24))
            for text in pair
        ]
        train, select, report = (Dataset.from_list(part) for part in (rows[:24], rows[24:36], rows[36:]))
        splits = {"train": train, "baseline": train, "select": select, "report": report}
        return replace(real(kind, n_pairs=3, label_words={0: "negative", 1: "positive"}), splits=splits)

    monkeypatch.setattr(skn, "load_model", lambda name: model)
    monkeypatch.setattr(skn, "minimal_pairs", fewer)
    return model


def test_the_readme_has_the_main_example_and_the_one_with_transformer_lens():
    assert len(BLOCKS) == 6 and "InputCache" in BLOCKS[5] and "measure_effects" in BLOCKS[2]
    assert "over_checkpoints" in BLOCKS[4]
    assert "fit_soft_prompts" in BLOCKS[0] and "ablation_effect" in BLOCKS[0]


@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore:the prompt of seed:UserWarning")  # two steps teach a random model nothing
@pytest.mark.filterwarnings("ignore:adapting by:UserWarning")
def test_the_readmes_code_runs_and_prints_the_effect_beside_its_control(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch}
    for block in BLOCKS:
        exec(
            block.replace("n_steps=40", "n_steps=2")
            .replace("n_steps=300", "n_steps=2")
            .replace("0.02", "0.1")
            .replace("top_heads(10)", "top_heads(3)")
            .replace("n_permutations=1000", "n_permutations=39"),  # six pairs have 64 orders
            names,
        )  # 0.02 of 48 is none
    printed = capsys.readouterr().out
    assert re.search(
        r"intact \d\.\d+, skill neurons ablated \d\.\d+, random neurons ablated \d\.\d+", printed
    )
    assert names["cache"]["blocks.0.mlp.hook_post"].shape[1] == names["tokens"].shape[1]
    assert names["logits"].shape == (1, 2)


def test_every_name_in_the_readmes_table_is_public(skn):
    called = re.findall(r"`(?:skn\.)?([A-Za-z_]+)\(", README.split("## What answers what")[1])
    known = set(skn.__all__) | {"top", "binary_subtasks", "chance_level", "attached", "random_like"}
    assert set(called) <= known, set(called) - known
