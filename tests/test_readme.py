"""The code of README and of the pages beside the examples runs, so its names can't drift."""

import re
import typing
from dataclasses import replace
from pathlib import Path

import families
import planted
import pytest
import torch
from datasets import Dataset
from tiny import bridge

from tl_skillneurons.models import sites

ROOT = Path(__file__).parents[1]
PAGES = sorted(page for page in (ROOT / "examples").glob("*.md") if "```python" in page.read_text())
SMALLER = {
    "n_steps=30": "n_steps=2",
    "n_steps=40": "n_steps=2",
    "n_steps=300": "n_steps=2",
    "0.02": "0.1",  # 0.02 of 48 is none
    "top_heads(10)": "top_heads(3)",
    "n_permutations=1000": "n_permutations=39",  # six pairs have 64 orders
    "n_random=20": "n_random=5",
    '"other_class_mean", Noise(0.5), Scale(2.0), Keep(Mean())]': "Keep(Mean())]",
}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page):
    return re.findall(r"```python\n(.*?)```", text_of(page), flags=re.DOTALL)


def run_page(page, names):
    for block in blocks(page):
        for large, small in SMALLER.items():
            block = block.replace(large, small)
        exec(compile(block, page.name, "exec"), names)


@pytest.fixture(scope="module")
def of_readme(skn, tmp_path_factory):
    """What the README's code leaves and prints, with a tiny model behind ``load_model`` that knows its label words,
    and few twins that it can read."""
    model = bridge("llama")
    real = skn.minimal_pairs
    printed = []

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

    names = {"print": lambda *what: printed.append(" ".join(map(str, what)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("readme"))
        patch.setattr(skn, "load_model", lambda name: model)
        patch.setattr(skn, "minimal_pairs", fewer)
        run_page(ROOT / "README.md", names)
    return names, "\n".join(printed)


untaught = pytest.mark.filterwarnings(  # two steps teach a random model nothing, on texts that are few
    "ignore:the prompt of seed:UserWarning",
    "ignore:adapting by:UserWarning",
    "ignore:.*the gap is .* units:UserWarning",
)


@untaught
def test_the_readmes_code_prints_the_effect_beside_both_controls(of_readme):
    _, printed = of_readme
    for column in ("intact", "value", "random_median", "p_random", "matched_median", "p_matched"):
        assert column in printed
    assert re.search(r"logit_diff +-?\d+\.\d+ +-?\d+\.\d+", printed)


@untaught
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_code_runs_after_the_readmes(of_readme, page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {**of_readme[0], "torch": torch, "print": print}
    run_page(page, names)
    if page.stem == "effects":
        assert names["cache"]["blocks.0.mlp.hook_post"].shape[1] == names["tokens"].shape[1]
        assert names["logits"].shape == (1, 2)
    if page.stem != "speed":
        assert len(capsys.readouterr().out) > 200


def test_the_readme_is_short_and_every_page_is_in_the_index():
    assert (ROOT / "README.md").stat().st_size <= 8000
    index = text_of(ROOT / "examples" / "README.md")
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".md", ".py", ".ipynb") and path.name != "README.md":
            assert f"{path.name}" in index, path.name


def families_named(text):
    """The families in README's list: "gemma 1 to 4" are gemma, gemma2, gemma3 and gemma4."""
    names = set()
    for one in re.split(r"[,;]", re.sub(r"\(.*?\)", "", text, flags=re.DOTALL)):
        name, _, numbers = one.strip().lower().replace("-", "_").partition(" ")
        first, last = re.fullmatch(r"(\d) (?:to|and) (\d)", numbers).groups() if numbers else (2, 1)
        names |= {name, *(f"{name}{n}" for n in range(max(2, int(first)), int(last) + 1))}
    return names


def test_the_readmes_families_are_those_that_the_checks_accept():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", text_of(ROOT / "examples" / "models.md"), re.MULTILINE)
    assert [name for name, _ in rows] == list(families.FAMILIES)  # python tests/families.py --page
    assert len(rows) >= 60 and all(set(cells.split(" | ")) <= {"ok", "refused"} for _, cells in rows)
    accepted = [name for name, cells in rows if cells.startswith("ok | ok | ok | ok | ok ")]
    named = families_named(text_of(ROOT / "README.md").split("## Models\n\n")[1].split(". [Each]")[0])
    spelled = {name.replace("_v", "") for name in accepted}  # deberta_v2 is DeBERTa 2
    assert named <= spelled
    mixtures = [name for name in accepted if sites._names_experts(families.config_of(name))]
    told = [name for name in accepted if any(re.fullmatch(f"{one}(_.*|[0-9])?", name) for one in named)]
    assert {name for name in accepted if "t5" not in name} == {*told, *mixtures}


@pytest.mark.parametrize("page", ["README.md", "examples/README.md", *[f"examples/{p.name}" for p in PAGES]])
def test_every_link_to_a_file_leads_to_one(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text_of(path)):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "heading"),
    [("README.md", "## What you may conclude"), ("examples/everything.md", "# What answers what")],
)
def test_every_name_in_the_tables_of_questions_is_public(skn, page, heading):
    rows = [row for row in text_of(ROOT / page).split(heading)[1].splitlines() if row.startswith("| ")][2:]
    assert len(rows) >= 8
    rooms = [name for name in skn.__all__ if name.islower() and isinstance(getattr(skn, name), type(typing))]
    for row in rows:
        for code in re.findall(r"`([A-Za-z][^`]*)`", row.split("|")[2]):
            if code.startswith("tl-skillneurons "):  # a command
                continue
            name = re.match(r"(?:skn\.)?([A-Za-z_.]+)", code)[1]
            values = {"scores": skn.NeuronScores, "prompt": skn.SoftPrompt}
            first, _, rest = name.partition(".")
            places = [skn, *(getattr(skn, room) for room in rooms)] if not rest else []
            if rest and first in rooms:
                places.append(getattr(skn, first))
            if rest and first in values:
                places.append(values[first])
            if rest and isinstance(getattr(skn, first, None), type):
                places.append(getattr(skn, first))
            assert any(hasattr(place, rest or first) for place in places), code
