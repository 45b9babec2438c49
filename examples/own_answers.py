"""Which neurons tell, before a chat model answers, whether it will be right, and what happens when they are changed?

SmolLM2-135M-Instruct is asked for the capitals of countries: its own answers, judged, are the labels. A few minutes on
two CPU cores. ``python own_answers.py MODEL`` asks another chat model.
"""

# %% Questions, and a chat model that answers them
import os
import random
import sys

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # fewer questions and controls, for a quick check
CAPITALS = {
    "Europe": (
        "France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Norway Oslo, Sweden "
        "Stockholm, Finland Helsinki, Denmark Copenhagen, Iceland Reykjavik, Ireland Dublin, Poland Warsaw, "
        "Austria Vienna, Hungary Budapest, Romania Bucharest, Bulgaria Sofia, Greece Athens, Croatia Zagreb, "
        "Serbia Belgrade, Slovenia Ljubljana, Slovakia Bratislava, Albania Tirana, Estonia Tallinn, Latvia "
        "Riga, Lithuania Vilnius, Belarus Minsk, Ukraine Kyiv, Moldova Chisinau, Malta Valletta, Belgium "
        "Brussels, Switzerland Bern, Andorra Andorra la Vella"
    ),
    "Asia": (
        "Japan Tokyo, China Beijing, India New Delhi, Nepal Kathmandu, Bhutan Thimphu, Mongolia Ulaanbaatar, "
        "Laos Vientiane, Vietnam Hanoi, Thailand Bangkok, Cambodia Phnom Penh, Myanmar Naypyidaw, Malaysia "
        "Kuala Lumpur, Indonesia Jakarta, Philippines Manila, Pakistan Islamabad, Afghanistan Kabul, Iran "
        "Tehran, Iraq Baghdad, Syria Damascus, Jordan Amman, Lebanon Beirut, Oman Muscat, Qatar Doha, Bahrain "
        "Manama, Yemen Sanaa, Turkey Ankara, Uzbekistan Tashkent, Tajikistan Dushanbe, Kyrgyzstan Bishkek, "
        "Turkmenistan Ashgabat, Kazakhstan Astana, Azerbaijan Baku, Armenia Yerevan, Georgia Tbilisi, "
        "Bangladesh Dhaka, Maldives Male"
    ),
    "Africa": (
        "Kenya Nairobi, Ghana Accra, Chad N'Djamena, Togo Lomé, Egypt Cairo, Libya Tripoli, Tunisia Tunis, "
        "Algeria Algiers, Morocco Rabat, Sudan Khartoum, Ethiopia Addis Ababa, Somalia Mogadishu, Uganda "
        "Kampala, Rwanda Kigali, Burundi Gitega, Tanzania Dodoma, Zambia Lusaka, Zimbabwe Harare, Malawi "
        "Lilongwe, Mozambique Maputo, Angola Luanda, Namibia Windhoek, Botswana Gaborone, Lesotho Maseru, "
        "Madagascar Antananarivo, Mauritius Port Louis, Senegal Dakar, Mali Bamako, Niger Niamey, Nigeria "
        "Abuja, Benin Porto-Novo, Liberia Monrovia, Gabon Libreville, Cameroon Yaoundé, Guinea Conakry, "
        "Gambia Banjul, Mauritania Nouakchott, Eritrea Asmara"
    ),
    "America": (
        "Peru Lima, Chile Santiago, Canada Ottawa, Cuba Havana, Bolivia Sucre, Brazil Brasília, Argentina "
        "Buenos Aires, Uruguay Montevideo, Paraguay Asunción, Colombia Bogotá, Ecuador Quito, Venezuela "
        "Caracas, Guyana Georgetown, Suriname Paramaribo, Mexico Mexico City, Guatemala Guatemala City, "
        "Honduras Tegucigalpa, Nicaragua Managua, Panama Panama City, Belize Belmopan, Jamaica Kingston, "
        "Haiti Port-au-Prince, Barbados Bridgetown, Bahamas Nassau, Grenada St. George's"
    ),
}
model = skn.load_model(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
quiet = skn.RunOptions(progress=False)
rows = []
for continent, countries in list(CAPITALS.items())[: 2 if SMALL else None]:
    for both in countries.split(", "):
        country, capital = both.split(" ", 1)
        rows.append({"country": country, "capital": capital, "continent": continent})
random.Random(0).shuffle(rows)
rows = rows[:60] if SMALL else rows
first, second = len(rows) // 4, len(rows) * 5 // 8
asked = skn.PromptedModel(model, None, chat=skn.tasks.Chat(assistant="The capital is"), run=quiet)


def judge(answer, row):
    """Right where the capital stands in the answer."""
    return row["capital"] in answer


# %% Its answers are the labels; of each split and continent as many right as wrong ones, or a neuron that reads the
# continent would pass for one that knows
writing = {"max_new_tokens": 5 if SMALL else 10}
found = skn.tasks.from_answers(
    asked,
    {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]},
    question="What is the capital of {country}?",
    judge=judge,
    writing=writing,
    unended="judge",
    topic="continent",
    name="right or wrong",
)
table = found.to_dataframe().assign(continent=[row["continent"] for row in rows])
print(table[["text", "answer", "label", "kept"]].head(8).to_string(index=False))
print(table.groupby("continent").label.value_counts().unstack())
print(f"as a task: {found.task.n_examples}")

# %% Read where the answer begins, at its first token, and at its last: chosen on select, told on report
tasks = {"readout": found.task, "answer_first": found.with_answers(), "answer_last": found.with_answers()}
for positions, task in tasks.items():
    scores = skn.score_neurons(
        model, None, task, positions=positions, n_permutations=19 if SMALL else 1000, run=quiet
    )
    rules = skn.scores.evaluate_rules(model, None, task, scores, run=quiet)
    best = scores.top(10, per="model")
    on_report = float(rules.accuracy_of(best).mean())
    beside = [float(rules.accuracy_of(best.random_like(seed)).mean()) for seed in range(20)]
    print(
        f"{positions}: best {scores.predictivity.max():.3f} on select, where luck reaches {scores.null.level():.3f} in "
        f"5 % of cases; {len(scores.significant())} neurons above that; the ten best {on_report:.3f} on report, ten "
        f"random ones of the same layers {min(beside):.3f} to {max(beside):.3f}"
    )

# %% Multiplied while it answers: is it right less or more often, and does it do more than with random neurons?
scores = skn.score_neurons(model, None, found.task, positions="readout", run=quiet)
skill = scores.top(0.01)
of_report = set(found.task.split("report")["text"])
questions = [(text, row) for text, row in zip(table.text, rows, strict=True) if text in of_report]


def right(neurons, factor):
    """The share of right answers where neurons are multiplied from the question's end on."""
    hooks = skn.ablate(neurons, how=skn.interventions.Scale(factor), positions="generated")
    written = asked.generate([text for text, _ in questions], interventions=hooks, **writing)
    hits = [judge(answer, row) for answer, (_, row) in zip(written.answers, questions, strict=True)]
    return sum(hits) / len(hits)


n_random = 1 if SMALL else 5
by_itself = float((table[table.text.isin(of_report)].label == "right").mean())
print(
    f"\n{len(questions)} questions of report, of which it answers {by_itself:.3f} right by itself; right with"
)
for factor in (2.0,) if SMALL else (0.0, 2.0):
    beside = [right(skill.random_like(seed), factor) for seed in range(n_random)]
    print(
        f"{len(skill)} neurons times {factor:g}: {right(skill, factor):.3f}; as many random ones of the same layers "
        f"{min(beside):.3f} to {max(beside):.3f} ({n_random} sets: no p-value below 1/{n_random + 1})"
    )
