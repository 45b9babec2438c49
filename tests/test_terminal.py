"""Names, texts and folders reach the terminal and a notebook as they are."""

from dataclasses import dataclass

import pandas as pd
import pytest
from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table

NASTY = [
    "[/]",
    "[red]neg",
    "a[bold]b[/bold]",
    ":heart:",
    "[link=x]y",
    "tl_skillneurons[plots]",
    "a]b[",
    "\\[red]",
]


def printed(thing):
    console = Console(width=200, color_system=None, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(thing)
    console.file.close()
    return console.export_text()


@pytest.mark.parametrize("text", NASTY)
def test_brackets_and_colons_are_printed_as_they_are(text):
    from tl_skillneurons._terminal import shown

    table = Table(title=shown(text), caption=shown(text))
    table.add_column(shown(text))
    table.add_row(shown(text))
    assert printed(shown(text)).strip() == text
    assert printed(table).count(text) == 4


def test_what_would_move_the_cursor_or_has_no_bytes_is_spelled_out():
    from tl_skillneurons._terminal import shown

    assert shown("a\x1b[2Jb\x07\ud800 \u0905\u094d").plain == "a\\x1b[2Jb\\x07\\ud800 \u0905\u094d"
    assert shown("two\nlines\tand a tab").plain == "two\nlines\tand a tab"


@pytest.mark.parametrize("text", NASTY)
def test_every_table_that_a_study_prints_shows_names_as_they_are(text):
    from tl_skillneurons.report.terminal import _neuron_table
    from tl_skillneurons.studies.across_tasks.damage import TaskDamage
    from tl_skillneurons.studies.across_tasks.similarity import TaskComparison

    row = {
        "layer": 0, "index": 1, "high_means": text, "accuracy_on_select": 0.5, "p_family": 1.0,
        "accuracy_on_report": 0.5, "interval_95_on_report": [0.4, 0.6],
    }  # fmt: skip
    skill = {
        "best": [row], "n": 1, "rule": "2", "mean_accuracy_on_select": 0.5, "mean_accuracy_on_report": 0.5,
    }  # fmt: skip
    luck = {
        "threshold": 0.7, "n_permutations": 99, "expected": 0.6, "n_neurons_significant": 1, "n_neurons": 9,
        "smallest_p": 0.01,
    }  # fmt: skip
    assert text in printed(_neuron_table(skill, luck))
    names = (text, "other")
    cell = {"damage": 0.1, "intact": 0.9, "p_random": 0.01, "p_matched": 0.01, "role": text}
    cell["neurons_chosen"] = "on other examples"
    damage = pd.DataFrame([{"ablated": a, "measured": b, **cell} for a in names for b in names])
    assert printed(TaskDamage(damage, names, {}).to_table()).count(text) == 3
    alike = {
        "spearman": 0.1, "null_low": 0.0, "null_high": 0.1, "n_shared": 1, "jaccard": 0.1, "chance_jaccard": 0.1,
        "p_overlap": 0.5, "p_shared": 0.5, "layer": -1, "labels_of": "each side in turn",
    }  # fmt: skip
    pairs = pd.DataFrame([{"one": text, "other": "other", **alike}])
    assert text in printed(TaskComparison(pairs, names, {}).to_table())


@pytest.mark.parametrize("text", NASTY)
def test_a_hint_or_an_error_is_told_as_it_is(text, capsys):
    from tl_skillneurons.cli import _errors

    _errors.tell("Error:", "red", f"pip install {text!s}")
    assert f"Error: pip install {text}" in capsys.readouterr().err


def test_progress_bars_read_no_markup(monkeypatch):
    from tl_skillneurons import _progress

    made = []
    monkeypatch.setattr(_progress, "TextColumn", lambda *a, **k: made.append(k) or TextColumn(*a, **k))
    monkeypatch.setattr(_progress, "Console", lambda **k: Console(force_terminal=True, **k))
    with _progress.progress_bar("rules on [/]", 2) as advance:
        advance(note="[/]")
    assert made and all(options["markup"] is False for options in made)


def test_a_notebooks_table_is_escaped():
    from tl_skillneurons._results import html_of

    @dataclass
    class Found:
        name: str

        def to_dataframe(self):
            rows = [{"<b>": self.name, "x": 0.12345, "n": k} for k in range(12)]
            return pd.DataFrame(rows)

    html = html_of(Found("<script>alert('1')</script> & \"q\""))
    assert "<script" not in html and "<b>" not in html
    assert html.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &#34;q&#34;") >= 10
    assert "<td>0.123</td><td>3</td>" in html and "<p>2 more rows in to_dataframe()</p>" in html


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0= a,1= b", {0: " a", 1: " b"}),
        ("0042=a,7=b", {"0042": "a", "7": "b"}),
        ("true=007,false=12", {"true": "007", "false": 12}),
        ("-1=a,1=b", {-1: "a", 1: "b"}),
        ("٣=a,1=b", {"٣": "a", "1": "b"}),
        ("[/]=a,[red]neg=b", {"[/]": "a", "[red]neg": "b"}),
    ],
)
def test_label_words_of_the_command_keep_their_spelling(given, words):
    from tl_skillneurons.cli._options import label_words_of

    assert label_words_of(given) == words


def test_a_label_twice_is_refused():
    from tl_skillneurons.cli._options import label_words_of

    with pytest.raises(ValueError, match="name each label once, got '0' twice"):
        label_words_of("0=a,0=b")


def test_folders_of_data_in_any_script_have_names_of_their_own(tmp_path):
    from tl_skillneurons.cli._options import slug

    assert slug("数据") != slug("資料") != ""
    assert slug("a[bold]b/c d") == "a-bold-b-c-d"
    (tmp_path / "My tweets (final).csv").touch()
    assert slug(str(tmp_path / "My tweets (final).csv")) == "My-tweets-final"


def test_where_the_time_went_is_said_longest_first():
    from tl_skillneurons.report.terminal import time_said

    seconds = {"price": {"wall": 20.4, "cpu": 39.0}, "effects": {"wall": 150.0, "cpu": 290.0}}
    assert time_said(seconds) == "Where the time went: effects 150 s, price 20 s; 170 s in all."
    assert time_said({}) == ""
