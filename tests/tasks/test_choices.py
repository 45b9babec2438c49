"""Multiple choice: what is written, where the right choice stands, and what is refused."""

from collections import Counter

import datasets
import numpy as np
import pytest

from tl_skillneurons.tasks.choices import multiple_choice

FRUIT = ("apple", "pear", "plum", "fig")
OWN = [
    {"question": f"what is {k} times 3?", "choices": [str(3 * k), str(3 * k + 1), str(k), "0"], "answer": 0}
    for k in range(1, 61)
]
SAME = [{"question": f"basket {k} holds?", "answer": k % 4} for k in range(160)]


def options_of(text):
    """Question and options of a text that was written by the default template."""
    question, *lines, last = text.split("\n")
    assert last == "Answer:"
    return question, [line.partition(" ")[::2] for line in lines]


def rights(task, rows, role):
    """Where the right choice stands in each text of a role, by the data."""
    known = {row["question"]: row["choices"][row["answer"]] for row in rows}
    found = []
    for text in task.split(role)["text"]:
        question, options = options_of(text)
        found.append([choice for _, choice in options].index(known[question]))
    return found


def test_the_letter_of_the_right_choice_is_the_class_and_stands_at_each_place_equally_often():
    task = multiple_choice(OWN, name="times")
    assert task.label_words == {0: " A", 1: " B", 2: " C", 3: " D"} and task.label_names == tuple("ABCD")
    for role, n in (("train", 36), ("select", 12), ("report", 12)):
        assert task.n_examples[role] == n
        assert list(task.split(role)["label"]) == rights(task, OWN, role)
        assert set(Counter(rights(task, OWN, role)).values()) == {n // 4}
    question, options = options_of(task.split("train")["text"][0])
    (row,) = [row for row in OWN if row["question"] == question]
    assert [letter for letter, _ in options] == ["A.", "B.", "C.", "D."]
    assert sorted(choice for _, choice in options) == sorted(row["choices"])
    assert task.notes[-1] == "the right choice stands at each place equally often in each role (shuffle 0)."


def test_another_shuffle_writes_the_same_questions_in_the_same_roles_in_another_order():
    one, again, other = (multiple_choice(OWN, shuffle=shuffle) for shuffle in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    for role in ("train", "select", "report"):
        texts = [list(task.split(role)["text"]) for task in (one, other)]
        assert [options_of(text)[0] for text in texts[0]] == [options_of(text)[0] for text in texts[1]]
        assert texts[0] != texts[1]
    turned = multiple_choice(
        OWN[::-1]
    )  # an example's options don't hang on the others, but for the right one's place
    orders = [
        {
            q: [c for _, c in o if c != str(3 * int(q.split()[2]))]
            for q, o in map(options_of, task.split("train")["text"])
        }
        for task in (one, turned)
    ]
    both = orders[0].keys() & orders[1].keys()
    assert both and all(orders[0][q] == orders[1][q] for q in both)


@pytest.mark.parametrize(("by", "bullets"), [("text", "----"), ("both", ("A.", "B.", "C.", "D."))])
def test_choices_that_every_question_has_are_classes_whose_right_one_stands_everywhere(by, bullets):
    task = multiple_choice(SAME, choices=FRUIT, by=by)
    assert task.label_words == {k: f" {fruit}" for k, fruit in enumerate(FRUIT)} and task.label_names == FRUIT
    places = Counter()
    for text, label in zip(task.split("train")["text"], task.split("train")["label"], strict=True):
        question, options = options_of(text)
        assert [bullet for bullet, _ in options] == list(bullets)
        assert label == int(question.split()[1]) % 4
        places[label, [choice for _, choice in options].index(FRUIT[label])] += 1
    assert set(places.values()) == {6} and len(places) == 16


def test_choices_and_answers_are_read_as_people_have_them():
    expected = multiple_choice(OWN).fingerprint
    in_columns = [
        {"question": row["question"], **dict(zip("abcd", row["choices"], strict=True)), "key": "A"}
        for row in OWN
    ]
    assert multiple_choice(in_columns, choices=list("abcd"), answer="key").fingerprint == expected
    by_text = [{**row, "answer": row["choices"][0]} for row in OWN]
    assert multiple_choice(datasets.Dataset.from_list(by_text)).fingerprint == expected
    arc = [
        {
            "question": row["question"],
            "choices": {"text": row["choices"], "label": list("wxyz")},
            "answerKey": "w",
        }
        for row in OWN
    ]
    assert multiple_choice(arc, answer="answerKey").fingerprint == expected
    splits = {"train": OWN[:40], "test": OWN[40:]}
    task = multiple_choice(splits)
    assert sorted(rights(task, OWN, "report")) == sorted(list(range(4)) * 5)


def test_in_a_chat_the_answer_begins_the_message_or_goes_on_with_its_beginning():
    asked = multiple_choice(OWN, chat={"system": "Choose."})
    assert (
        asked.template == "{question}\n{options}"
        and asked.label_words[0] == "A"
        and asked.chat.system == "Choose."
    )
    begun = multiple_choice(OWN, chat={"user": "{options}\n{question}", "assistant": "It is"})
    assert begun.label_words[0] == " A" and begun.split("train")["text"][0].startswith("A. ")


def test_the_same_question_twice_is_one_unit_and_in_one_role():
    task = multiple_choice([*OWN, *({**row, "choices": row["choices"][::-1], "answer": 3} for row in OWN)])
    asked = {
        role: [options_of(text)[0] for text in task.split(role)["text"]]
        for role in ("train", "select", "report")
    }
    assert not set(asked["train"]) & set(asked["report"]) and not set(asked["select"]) & set(asked["report"])
    assert len(task.units("train")) == len(set(asked["train"])) == len(asked["train"]) / 2


@pytest.mark.parametrize(
    ("change", "more", "error", "told"),
    [
        (
            {},
            {"letters": "ABCDE"},
            ValueError,
            r"got 5 \('A', .*\) and 4 choices .* give letters=\[...\], as many",
        ),
        ({}, {"letters": "ABC"}, ValueError, "got 3 .* and 4 choices"),
        ({"choices": ["3", "4", "5"]}, {}, ValueError, "row 7: every question must have the same number"),
        (
            {"choices": ["3", "3 ", "5", "6"]},
            {},
            ValueError,
            "row 7: choices must be different and not empty",
        ),
        ({"answer": 4}, {}, ValueError, "row 7: the answer must be 0 to 3, the number of a choice, got 4"),
        ({"answer": "E"}, {}, ValueError, "row 7: the answer .E. is none of the choices"),
        (
            {"choices": ["B", "A", "x", "y"], "answer": "A"},
            {},
            ValueError,
            "text of one and the letter of another",
        ),
        (
            {"answer": 0.5},
            {},
            TypeError,
            r"a choice's number \(an integer from 0\), text or letter, got float",
        ),
        ({"answer": None}, {}, TypeError, "row 7: .* got NoneType None; drop examples without an answer"),
        (
            {"question": None},
            {},
            TypeError,
            "row 7: the question must be a string, got NoneType None; drop such",
        ),
        ({"choices": ["3", None, "5", "6"]}, {}, TypeError, "row 7: a choice must be a string, got NoneType"),
        ({"choices": []}, {}, ValueError, r"row 7: a question must have two choices at least, got \[\]"),
        (
            {"choices": {"text": ["3", "4", "5", "6"], "label": ["1", "2"]}},
            {},
            ValueError,
            "got 2 .* and 4 choices .*row 7",
        ),
        ({}, {"letters": ["A", "B", " ", "D"]}, ValueError, "without blanks around it, got ' '"),
        ({}, {"letters": ["A", "B", None, "D"]}, TypeError, "must be a string, got NoneType"),
        ({}, {"choices": []}, ValueError, "choices must name at least two columns or two choices, got none"),
        ({}, {"template": ""}, ValueError, "template '' has no field"),
        ({"question": " "}, {}, ValueError, "row 7: the question is empty"),
        ({"choices": "3, 4"}, {}, TypeError, "must hold lists of choices, got str"),
        ({}, {"by": "text"}, ValueError, "every question must have the same; .* give by='letter'"),
        ({}, {"choices": ["question", "b"]}, ValueError, "all columns or all choices, and 'b' is no column"),
        ({}, {"answer": "anwser"}, ValueError, "did you mean 'answer'"),
        ({}, {"template": "{question}"}, ValueError, "must have the fields 'question', 'options' once each"),
        (
            {**OWN[8], "answer": 1},
            {},
            ValueError,
            "row 8: the same question with the same choices is answered by",
        ),
    ],
)
def test_what_is_no_multiple_choice_is_refused(unchecked, change, more, error, told):
    rows = [row if k != 7 else {**row, **change} for k, row in enumerate(OWN)]
    with pytest.raises(error, match=told):
        multiple_choice(rows, **more)


def test_no_question_at_all_is_refused_and_cells_of_numpy_are_taken():
    with pytest.raises(ValueError, match="there is no question; give at least a few"):
        multiple_choice([])
    rows = [{**row, "choices": np.array(row["choices"]), "answer": np.int64(row["answer"])} for row in OWN]
    assert multiple_choice(rows).fingerprint == multiple_choice(OWN).fingerprint
