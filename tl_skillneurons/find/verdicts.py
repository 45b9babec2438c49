"""What a run's numbers allow to say: five questions, each answered by a rule of one table, :data:`RULES`.

=============================================  =====================================================================
question                                       rule
=============================================  =====================================================================
Can the task be done?                          YES: some prompt is right on ``report`` more often than whoever always
                                               says the commonest label, at p <= 0.05 (McNemar, by units, times
                                               the number of prompts).
                                               NO: none is. The other questions are not asked then
Is the label readable?                         YES: the interval of the best neurons' rules on ``report`` lies above
                                               what the best of all neurons reaches by luck, and they beat random
                                               neurons at p <= 0.05. NO: the interval ends at that level or below it
Does the model use them?                       of the margin (logit diff), and of the answers (accuracy), each
                                               YES: with every prompt the value is below the median of every kind of
                                               control at p <= 0.05, and the interval of the pooled change is below 0.
                                               NO: the pooled value is not below the median of some kind of control,
                                               and the lower end of its interval not below all of that kind
Are they the same with another prompt?         YES: each two prompts share more of their best neurons than under
                                               permuted labels, at p <= 0.05, and at most 5 % of the skill neurons
                                               turn their sign. PARTLY: some two prompts do, with how many of how
                                               many. NO: no two prompts share more than the median of permuted
                                               labels (p >= 0.5)
What does taking them away cost elsewhere?     MORE, LESS or NO MORE THAN CONTROLS: where the perplexity of plain text
                                               lies beside the range of all controls'
=============================================  =====================================================================

Where neither rule applies the answer is NOT ESTABLISHED, and so is what was not measured. Each verdict carries what it
claims, how that was tested, what the test assumes, what would overturn it, and the command that tests further.
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tl_skillneurons._results import html_of_fields
from tl_skillneurons.find.answers import ALPHA, PromptAnswers
from tl_skillneurons.find.price import Price
from tl_skillneurons.find.readability import Readability
from tl_skillneurons.find.said import fraction, interval, listed, number
from tl_skillneurons.find.stability import Stability
from tl_skillneurons.interventions.effect_panel import EffectPanel

YES, NO, NOT_ESTABLISHED, PARTLY = "YES", "NO", "NOT ESTABLISHED", "PARTLY"
MORE, LESS, NO_MORE = "MORE THAN CONTROLS", "LESS THAN CONTROLS", "NO MORE THAN CONTROLS"
MARGIN, ANSWERS = "logit_diff", "accuracy"
MOST_TURNED = 0.05


@dataclass(frozen=True)
class Verdict:
    """What one question's numbers allow to say.

    Attributes:
        question: The question.
        answer: YES, NO, NOT ESTABLISHED, ...; of the model's use "YES in its margin, NO in its answers".
        sentence: The numbers that decided, in a sentence.
        claim: What is claimed, whatever the answer.
        how_tested: How it was tested.
        assumes: What the test assumes.
        overturned_by: What would overturn the answer.
        command: A command that tests further.

    Example:
        >>> for verdict in found.verdicts:
        ...     print(verdict.question, verdict.answer)
    """

    _repr_html_ = html_of_fields

    question: str
    answer: str
    sentence: str
    claim: str
    how_tested: str
    assumes: str
    overturned_by: str
    command: str

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """One row of the table: a question, and all of its verdict that no number changes."""

    question: str
    claim: str
    how_tested: str
    assumes: str
    overturned_by: str
    command: str

    def verdict(self, answer: str, sentence: str, run: str) -> Verdict:
        """The rule's verdict on the run in the folder ``run``."""
        words = {**asdict(self), "command": self.command.format(run=shlex.quote(run))}
        return Verdict(answer=answer, sentence=sentence, **words)


RULES = {
    "can": Rule(
        "Can the task be done?",
        "The soft prompts make the model answer the task.",
        "Accuracy on report, which no prompt was tuned on, beside always saying the commonest label; McNemar's "
        "exact test of each prompt against that, whole units turned, p times the number of prompts <= 0.05.",
        "Units of report are independent of each other and of those of train.",
        "Texts of report that stand in train in other words; a prompt tuned on shuffled labels that does as well.",
        "tl-skillneurons find (options as before) --prompts 5 --steps 300 --out OTHER",
    ),
    "readable": Rule(
        "Is the label readable?",
        "Single neurons at the prompt tell the label of texts that did not choose them.",
        "Rules chosen on select, tried on report: their 95 % interval against the level that the best of all "
        "neurons reaches under permuted labels, and their rank among equally many random neurons, p <= 0.05.",
        "Labels are exchangeable among the units of select; report is of the same kind as select.",
        "A single word that tells the label as well; texts of another source on which the rules fail.",
        "tl-skillneurons diagnose {run}",
    ),
    "uses": Rule(
        "Does the model use them?",
        "What the skill neurons carry at the prompt is used for the answer.",
        "All skill neurons held at their mean at the prompt positions, on report; rank among random, matched and "
        "least predictive sets of the same layers, p <= 0.05 for every prompt, and the interval of the change.",
        "Controls are alike in all that matters but the label; holding at the mean leaves the model in a state "
        "that it knows.",
        "Other controls as active that do as much; zero or noise ablation that finds no difference.",
        "tl-skillneurons effects {run}",
    ),
    "same": Rule(
        "Are they the same with another prompt?",
        "The neurons belong to the task, not to one prompt.",
        "How many of their best neurons two prompts share, beside the same under permuted labels, which both prompts "
        "read, p <= 0.05; the share of the skill neurons whose direction turns between prompts.",
        "Prompts differ in their seed alone; they are of one length, and share label words and texts.",
        "Prompts of other lengths or other label words that choose other neurons.",
        "tl-skillneurons diagnose {run}",
    ),
    "price": Rule(
        "What does taking them away cost elsewhere?",
        "Holding the skill neurons costs the prediction of plain text no more than holding any others.",
        "Perplexity of plain sentences, without a prompt, with the same number of neurons held at their mean at "
        "all positions of the text; the range of all controls.",
        "The sentences stand for plain text; the mean over the task's texts is a neutral value for it.",
        "A longer text, or another domain, on which the skill neurons cost more than controls.",
        "tl-skillneurons effects {run} --positions all",
    ),
}
"""The questions in their order; the functions below decide their answers."""

KINDS = {"random": "random", "matched": "matched", "least": "least predictive"}
"""The kinds of control, as a reader calls them."""


def can_be_done(accuracies: Sequence[float], majority: float, p_values: Sequence[float]) -> str:
    """Whether some prompt is right more often than ``majority``, at the level.

    Example:
        >>> can_be_done([0.87, 0.88], 0.87, [1.0, 0.07]), can_be_done([0.87, 0.95], 0.87, [1.0, 0.05])
        ('NO', 'YES')
    """
    beat = [a > majority and p <= ALPHA for a, p in zip(accuracies, p_values, strict=True)]
    return YES if any(beat) else NO


def is_readable(low: float, high: float, level: float, p_random: float) -> str:
    """Whether the best neurons' interval lies above the level of luck, and they beat random neurons.

    Example:
        >>> is_readable(0.70, 0.80, 0.69, 0.05), is_readable(0.68, 0.80, 0.69, 0.05), is_readable(0.4, 0.6, 0.69, 1.0)
        ('YES', 'NOT ESTABLISHED', 'NO')
    """
    if low > level and p_random <= ALPHA:
        return YES
    return NO if high <= level else NOT_ESTABLISHED


def is_used(
    prompts: Sequence[dict[str, float]], pooled: dict[str, float], kinds: Sequence[str] = tuple(KINDS)
) -> str:
    """Whether the set does more than every kind of control, with every prompt, and something at all.

    Args:
        prompts: Of each prompt the ``value`` with the neurons held, and of each kind of control its median and p-value
            (``random_median``, ``p_random``, ...).
        pooled: The same over all prompts, with the lowest draw of each kind (``random_min``, ...), ``intact``, and the
            ends of the change's interval, ``change_low`` and ``change_high``.
        kinds: The kinds of control that there are.
    """
    below = [
        row["value"] < row[f"{kind}_median"] and row[f"p_{kind}"] <= ALPHA
        for row in prompts
        for kind in kinds
    ]
    if all(below) and pooled["change_high"] < 0:
        return YES
    lower_end = pooled["intact"] + pooled["change_low"]
    no_more = [
        pooled["value"] >= pooled[f"{kind}_median"] and lower_end >= pooled[f"{kind}_min"] for kind in kinds
    ]
    return NO if any(no_more) else NOT_ESTABLISHED


def is_same(p_values: Sequence[float], turned: float) -> str:
    """Whether each two prompts share more of their best than under permuted labels, and few neurons turn their sign.

    Args:
        p_values: Of each two prompts; none of a single prompt.
        turned: The share of the skill neurons that turn.

    Example:
        >>> is_same([0.05], 0.05), is_same([0.05], 0.06), is_same([0.06], 0.0), is_same([0.5], 0.0)
        ('YES', 'PARTLY', 'NOT ESTABLISHED', 'NO')
    """
    agree = [p <= ALPHA for p in p_values]
    if not any(agree):
        return NO if p_values and min(p_values) >= 0.5 else NOT_ESTABLISHED
    return YES if all(agree) and turned <= MOST_TURNED else PARTLY


def costs(held: float, lowest: float, highest: float) -> str:
    """Where a perplexity lies beside the controls'.

    Example:
        >>> costs(18.6, 18.3, 18.6), costs(18.7, 18.3, 18.6), costs(18.2, 18.3, 18.6)
        ('NO MORE THAN CONTROLS', 'MORE THAN CONTROLS', 'LESS THAN CONTROLS')
    """
    return MORE if held > highest else LESS if held < lowest else NO_MORE


def judge_answers(answers: PromptAnswers, words: Sequence[str], run: str) -> Verdict:
    """Can the task be done?

    Args:
        words: What stands for each class.
    """
    frame = answers.to_dataframe()
    rule, always = RULES["can"], words[answers.commonest]
    answer = can_be_done(frame.accuracy.tolist(), answers.majority, frame.p_majority.tolist())
    right = listed([number(one) for one in frame.accuracy])
    prompts = "the prompt" if len(frame) == 1 else "the prompts"
    if answer == NO:
        said = f"{prompts} {'is' if len(frame) == 1 else 'are'} right on {right} of report, and always saying {always}"
        said += f" on {number(answers.majority)} (p {listed([number(p) for p in frame.p_majority])})"
        if (frame.says_share == 1).all() and frame.says.nunique() == 1:
            said = (
                f"{prompts} answer{'s' if len(frame) == 1 else ''} {words[int(frame.says[0])]} on every text"
            )
            said += f", which is right on {number(float(frame.accuracy[0]))} of report"
        tries = "more steps, more virtual tokens, other label words, another template, or a larger model"
        if frame.accuracy.max() > answers.majority:  # it may be that few examples alone can't tell
            tries = f"more examples of report, {tries}"
        return rule.verdict(answer, f"No prompt, no skill neurons: {said}. Try {tries}.", run)
    are = "is" if len(frame) == 1 else "are"
    said = f"{prompts} {are} right on {right} of report; always saying {always} would be right on "
    said += number(answers.majority)
    failed = frame.seed[~frame.beats_majority].tolist()
    if failed:
        seeds = listed([str(one) for one in failed])
        those = f"The prompt of seed {seeds} does" if len(failed) == 1 else f"The prompts of seeds {seeds} do"
        said += f". {those} not beat that, and {'is' if len(failed) == 1 else 'are'} not used"
    return rule.verdict(answer, f"{said}.", run)


def judge_readability(readability: Readability, run: str) -> Verdict:
    """Is the label readable?"""
    best, p_random = readability.best, readability.p_random
    answer = is_readable(best.low, best.high, readability.level, p_random)
    table = readability.to_dataframe()
    said = (
        f"the {readability.n_best} best neurons' rules: {number(best.mean)} ({interval(best.low, best.high)}) on "
        f"report; random neurons {number(table.accuracy[1])} (p {fraction(p_random, len(readability.random))}); luck "
        f"reaches {number(readability.level)}."
    )
    return RULES["readable"].verdict(answer, said, run)


def judge_effects(panel: EffectPanel, run: str) -> Verdict:
    """Does the model use them? Of its margin and of its answers."""
    frame = panel.to_dataframe()
    answers, parts = {}, []
    kinds = [kind for kind in KINDS if f"{kind}_median" in frame]
    for metric, name in ((MARGIN, "logit diff"), (ANSWERS, "accuracy")):
        rows: list[dict[str, Any]] = [
            {str(column): value for column, value in row.items()}
            for row in frame[frame.metric == metric].to_dict("records")
        ]
        pooled = rows[-1]  # that of the only prompt, where there is one
        prompts = [row for row in rows if row["prompt"] != "pooled"]
        answers[metric] = is_used(prompts, pooled, kinds)
        change = f"{number(pooled['change'])}, 95 % {number(pooled['change_low'])} to {number(pooled['change_high'])}"
        beside = _beside(pooled, prompts, kinds)
        parts.append(f"{name} {number(pooled['intact'])} to {number(pooled['value'])} ({change}; {beside})")
    margin, own = answers[MARGIN], answers[ANSWERS]
    answer = f"{margin} in its margin, {own} in its answers" if margin != own else margin
    who = f"{pooled['n_neurons']:,} neurons held at their mean, {pooled['n_examples']:,} texts"
    said = f"{who}: {parts[0]}; {parts[1]}."
    return RULES["uses"].verdict(answer, said, run)


def _beside(pooled: dict[str, Any], prompts: Sequence[dict[str, Any]], kinds: Sequence[str]) -> str:
    """The range of each kind of control with its p-value, and the largest p-value of a single prompt."""
    draws = {kind: round(1 / pooled[f"smallest_p_{kind}"]) - 1 for kind in kinds}
    p_values = {kind: fraction(pooled[f"p_{kind}"], draws[kind]) for kind in kinds}
    alike = len(set(p_values.values())) == 1
    said = ", ".join(
        f"{draws[kind]} {KINDS[kind]} sets {interval(pooled[f'{kind}_min'], pooled[f'{kind}_max'])}"
        + ("" if alike else f" p {p_values[kind]}")
        for kind in kinds
    )
    said += f"; p {p_values[kinds[0]]} each" if alike else ""
    if len(prompts) == 1:
        return said
    worst, kind = max((row[f"p_{kind}"], kind) for row in prompts for kind in kinds)
    return f"{said}, of single prompts up to {fraction(worst, draws[kind])}"


def judge_stability(stability: Stability, run: str) -> Verdict:
    """Are they the same with another prompt?"""
    rule, frame = RULES["same"], stability.to_dataframe()
    if not len(frame):
        said = "there is one prompt, and nothing to compare it with; run with --prompts 2 or more."
        return rule.verdict(NOT_ESTABLISHED, said, run)
    p_values = frame.p_jaccard.tolist()
    answer = is_same(p_values, stability.share_turned)
    n_agree = sum(p <= ALPHA for p in p_values)
    n_turned, n = int(stability.turned.sum()), len(stability.skill)
    said = (
        f"{n_turned} of {n} skill neurons turn their sign between prompts ({stability.share_turned:.0%}). Two prompts "
        f"share {frame.n_shared.mean():.0f} of their {n} best ({frame.null_shared.mean():.0f} under permuted labels), "
        f"beyond luck in {n_agree} of {len(frame)} pair{'s' if len(frame) > 1 else ''} of prompts; rankings agree at "
        f"{number(float(frame.spearman.mean()))} ({number(float(frame.null_median.mean()))})."
    )
    return rule.verdict(answer, said, run)


def judge_price(price: Price | None, run: str) -> Verdict:
    """What does taking them away cost elsewhere?"""
    rule = RULES["price"]
    if price is None:
        said = "not measured: the model does not predict plain text token by token, as a causal model does."
        return rule.verdict(NOT_ESTABLISHED, said, run)
    row = price.to_dataframe().iloc[0]
    kinds = [kind for kind in KINDS if f"{kind}_median" in row]
    lowest, highest = min(row[f"{kind}_min"] for kind in kinds), max(row[f"{kind}_max"] for kind in kinds)
    beside = ", ".join(
        f"{KINDS[kind]} sets {interval(row[f'{kind}_min'], row[f'{kind}_max'])}" for kind in kinds
    )
    said = f"perplexity of plain text {number(row.intact)} to {number(row.held)} ({beside})."
    return rule.verdict(costs(float(row.held), lowest, highest), said, run)
