"""The page says what was found, in one file that asks for nothing, whatever names and texts it holds."""

import json
import re
import sys
from dataclasses import replace

import browser
import planted
import pytest
from runs import quick_run

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&amp; [/red] {{ 7*7 }} \u202e\u0645"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A small run whose task, model and labels have names that mean harm."""
    task, out = planted.task(n_train=40, n_select=24, n_report=24), tmp_path_factory.mktemp("page") / "run"
    run = quick_run(planted.model(), task, out)
    task = replace(run.task, name=HOSTILE, label_names=(HOSTILE + "0", HOSTILE + "1"), notes=(HOSTILE,))
    return replace(run, task=task, model={"name": HOSTILE})


@pytest.fixture(scope="module")
def page(skn, found, tmp_path_factory):
    return skn.report.write_page(found, tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def html(page):
    """The page without plotly's script."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def figures_of(html):
    return json.loads(re.search(r'id="figures">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_is_one_file_of_at_most_six_megabytes_with_one_copy_of_the_script(page):
    text = page.read_text(encoding="utf-8")
    assert page.name == "report.html" and page.stat().st_size < 6e6
    assert text.count("plotly.js v") == 1
    assert not re.search(r'(src|href)="(?!#)', re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))


def test_verdicts_stand_first_with_all_that_they_carry(found, html):
    at = [html.index(verdict.question) for verdict in found.verdicts]
    assert at == sorted(at) and max(at) < html.index('id="prompts"') < html.index('id="pictures"')
    for verdict in found.verdicts:
        for said in (verdict.answer, verdict.claim, verdict.how_tested, verdict.assumes, verdict.command):
            assert said.replace("'", "&#39;").replace("<", "&lt;") in html


def test_names_that_mean_harm_are_text_everywhere(html):
    assert HOSTILE not in html and "<img" not in html
    assert html.count("{{ 7*7 }}") > 4  # no name is a template
    assert html.count("&lt;script&gt;document.title") > 4
    assert "<script>" not in json.dumps(figures_of(html))


def test_each_picture_has_its_sentences_and_a_table_of_its_numbers(html):
    names = re.findall(r'id="picture-(\w+)"', html)
    assert names[:2] == ["sizes", "effects"] and "prompts" in names and set(names) == set(figures_of(html))
    for name in names:
        part = html[html.index(f'id="picture-{name}"') :]
        part = part[: part.index("</figure>")]
        assert "<h3>" in part and "Not shown: " in part and part.count("<tr>") > 1


def test_the_table_has_the_best_neurons_with_their_rules_on_report(found, html):
    from tl_skillneurons.report.tables import digits

    layer, index = next(iter(found.scores.top(1, per="model")))
    part = html[html.index('id="neurons"') :]
    assert f">{layer}.{index}<" in part and "data-value" in part
    assert digits(float(found.scores.predictivity.max())) in part


def test_each_of_the_best_neurons_has_its_texts_with_the_words_that_moved_it(found, html):
    first = next(iter(found.profiles))
    part = html[html.index(f'id="n-{first.layer}.{first.index}"') :]
    part = part[: part.index("</details>")]
    assert f'href="#n-{first.layer}.{first.index}"' in html
    texts = [*first.highest, *first.lowest]
    assert part.count("<li>") == len(texts) and "baseline" in part
    most = max(
        (piece for text in texts for piece in text.pieces if piece.moved), key=lambda piece: abs(piece.moved)
    )
    [piece] = set(
        re.findall(rf'<span class="w ([^>]*)" title="{re.escape(f"{most.moved:+.3f}")}, here', part)
    )
    kind, style = piece.split('" style="')
    assert ("up" if most.moved > 0 else "down") in kind.split() and "--a:1.00" in style
    fired = max(abs(piece.activation or 0) for text in texts for piece in text.pieces)
    assert f", here {fired:+.3f}" in part or f", here {-fired:+.3f}" in part
    assert "--b:1.0" in part and 'class="w on"' in html  # the legend's, at least


def test_a_section_says_what_its_neuron_writes_what_holding_it_does_and_who_writes_into_it(found):
    from tl_skillneurons.report.profile_sections import columns_of, profile_sections

    of = (planted.NEURONS.layer[0].item(), planted.NEURONS.index[0].item())
    sections = {
        one["name"]: dict(one["facts"]) for one in profile_sections(found.profiles, found.task)["each"]
    }
    facts = sections["{}.{}".format(*of)]
    assert facts["Raises the words"].startswith("positive (") and facts["Lowers the words"].startswith(
        "negative ("
    )
    assert (
        facts["Held alone at its mean: logit diff, to first order"].startswith("-")
        and "0.1 +" in facts["Heads that write the label"]
    )
    assert columns_of(found.profiles)[of]["raises most"] == "positive"


def test_what_a_text_of_the_task_says_is_text_too(found):
    from tl_skillneurons.report.page import _environment
    from tl_skillneurons.report.profile_sections import profile_sections

    profiles = replace(found.profiles, texts=found.profiles.texts.assign(text=HOSTILE), words=None)
    first = profile_sections(profiles, found.task)["each"][0]
    section = _environment().get_template("neuron.html.j2").render(one=first)
    assert "<img" not in section and section.count("&lt;img src=x onerror=alert(1)&gt;") > 16


def test_the_strip_of_an_effect_has_every_draw_beside_the_chosen_neurons(found):
    from tl_skillneurons.report.page_parts import effect_strips

    margin, _ = effect_strips(found)
    assert (margin.count("<circle"), margin.count("<rect"), margin.count("7.2z")) == (20, 20, 20)
    assert "logit diff" in margin and "least predictive" in margin


def test_what_was_asked_of_the_run_later_stands_on_its_page(found, tmp_path):
    from tl_skillneurons.report.further import ASKED, Answer
    from tl_skillneurons.report.page_parts import asked_later

    assert asked_later(found) == []
    (tmp_path / ASKED).mkdir()
    answer = Answer(
        "diagnose", "Stable?", {"Of it": [{"what": HOSTILE, "value": 0.51234}, {"what": "b", "value": None}]}
    )
    answer.save(tmp_path / ASKED / "diagnose-12345678.json")
    [asked] = asked_later(replace(found, folder=tmp_path))
    assert asked["title"] == "Stable?" and asked["command"] == "diagnose"
    table = asked["tables"][0]["table"]
    assert table.numeric == (False, True) and [row[1].text for row in table.rows] == ["0.512", "-"]


def test_a_run_that_stopped_has_its_prompts_and_no_pictures(skn, found, tmp_path):
    page = skn.report.write_page(replace(found, neurons=None), tmp_path / "stopped.html").read_text(
        encoding="utf-8"
    )
    assert 'id="prompts"' in page and 'id="pictures"' not in page and len(page) < 100_000


def test_a_run_read_back_gives_the_same_page(skn, found, page, tmp_path):
    again = replace(skn.load_run(found.folder), task=found.task, model=found.model)
    assert skn.report.write_page(again, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_without_plotly_the_page_says_what_it_needs(skn, found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ImportError, match=r"pip install \"tl_skillneurons\[plots\]\""):
        skn.report.write_page(found, tmp_path / "none.html")


def test_numbers_have_three_digits_and_intervals_brackets():
    from tl_skillneurons.report.tables import bracketed, digits, table_of

    assert [digits(one) for one in (0.5, -0.0315, 1234.56, 0.000123, 0.0, float("nan"))] == [
        *("0.500", "-0.032", "1,234.6", "0.000123", "0.000", "-")
    ]
    assert bracketed(0.9, 0.85, 0.95).text == "0.900 (0.850 to 0.950)"
    assert bracketed(0.9, float("nan"), float("nan")).text == "0.900"
    table = table_of([{"who": "a", "n": 1_200}, {"who": "b", "n": 3, "more": 0.5}])
    assert table.numeric == (False, True, True) and table.rows[0][1].text == "1,200"


def test_densities_are_drawn_of_constant_and_missing_values_too():
    import numpy as np

    from tl_skillneurons.report.small_svg import densities

    for values in (np.ones(6), np.array([1.0, 2.0, np.nan, 3.0, 4.0, 5.0]), np.full(6, np.nan)):
        drawn = densities(values, np.array([0, 1] * 3), 1.0, ("<a>", "b"))
        assert "nan" not in drawn and "<a>" not in drawn and "&lt;a&gt;" in drawn


needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "a browser is there")


@pytest.fixture(scope="module")
def driver(page, tmp_path_factory):
    with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def open_page(driver, page, **how):
    browser.look(driver, **how)
    driver.get(page.as_uri())


@needs_browser
@pytest.mark.parametrize(
    ("dark", "width"), [(False, 1200), (True, 390)], ids=["light and wide", "dark phone"]
)
def test_a_browser_shows_the_page_without_an_error(driver, page, html, dark, width, tmp_path):
    open_page(driver, page, dark=dark, width=width)
    assert driver.get_log("browser") == []
    drawn = driver.execute_script("return [...document.querySelectorAll('.plot .main-svg')].length")
    assert drawn >= len(figures_of(html))
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    kept = browser.keep_screenshot(driver, f"report-{'dark' if dark else 'light'}-{width}", tmp_path)
    assert kept.stat().st_size > 20_000


@needs_browser
def test_dark_and_light_change_the_page_and_its_pictures(driver, page):
    seen = []
    for dark in (False, True):
        open_page(driver, page, dark=dark)
        seen.append(
            driver.execute_script(
                "return [getComputedStyle(document.body).backgroundColor, "
                "getComputedStyle(document.querySelector('.plot .xtick text')).fill]"
            )
        )
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]
    browser.look(driver, dark=False)  # without a reload
    assert (
        driver.execute_script("return getComputedStyle(document.querySelector('.plot .xtick text')).fill")
        == seen[0][1]
    )


@needs_browser
def test_no_name_runs_as_a_script(driver, page):
    open_page(driver, page)
    assert driver.title.startswith("<script>")
    assert driver.execute_script("return document.querySelectorAll('main script, main img').length") == 0
    assert "onerror=alert(1)" in driver.find_element("css selector", "h1").text


@needs_browser
def test_a_heading_sorts_its_column_and_a_search_leaves_what_it_names(driver, page):
    open_page(driver, page)
    rows = "[...document.querySelectorAll('#neurons tbody tr:not([hidden])')]"
    column = f"return {rows}.map(row => +row.cells[1].dataset.value)"
    button = driver.find_elements("css selector", "#neurons th button")[1]
    driver.execute_script("arguments[0].click()", button)
    down = driver.execute_script(column)
    driver.execute_script("arguments[0].click()", button)
    up = driver.execute_script(column)
    assert down == sorted(down, reverse=True) and up == sorted(up) and down != up
    heads = driver.execute_script("return [...document.querySelectorAll('#neurons th')].map(h => h.ariaSort)")
    assert heads[1] == "ascending" and not any(heads[:1] + heads[2:])
    driver.find_element("css selector", "#neurons input").send_keys("2.3")
    shown = driver.execute_script(
        "return document.querySelectorAll('#neurons tbody tr:not([hidden])').length"
    )
    assert 0 < shown < len(down)


@needs_browser
def test_without_scripts_verdicts_and_all_tables_are_readable(driver, page, html):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(driver, page)
        text = driver.find_element("css selector", "main").text
        assert (
            "Is the label readable?" in text and "Pictures are drawn by a script, which is off here" in text
        )
        assert text.count("The numbers") == len(figures_of(html)) and "held-back loss" in text
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@needs_browser
def test_a_verdict_opens_to_what_it_assumes(driver, page):
    open_page(driver, page)
    first = driver.find_element("css selector", ".verdict")
    assert "What the test assumes" not in first.text
    first.find_element("css selector", "summary").click()
    assert "What the test assumes" in first.text
