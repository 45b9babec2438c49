"""Neurons that follow one word are told from those that follow the label; words near to weights, beside chance."""

import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from toy import LABEL_WORDS, prompt_for, task_of
from transformer_lens.model_bridge.exceptions import StopAtLayerException

import tl_skillneurons as skn
from tl_skillneurons.neurons.choice import Choice, text_fingerprints
from tl_skillneurons.prompts.positions import current_tokens
from tl_skillneurons.stats.units import Units
from tl_skillneurons.studies.words.position_share import epsilon_squared, position_share
from tl_skillneurons.studies.words.presence import word_correlations, word_presence
from tl_skillneurons.studies.words.selectivity import _against_shuffled, _require_movable


@pytest.fixture(scope="module")
def task():
    rows = tiny.sentences(260, seed=4)
    return task_of(rows, train=rows[:40], validation=rows[40:80], test=rows[80:])


def plant(task, word_neuron=3, label_neuron=5, length_neuron=7, position_neuron=11):
    """Neurons of layer 1 that follow the word "was", the label, the number of tokens, and each token's position."""
    model = tiny.bridge("gpt2")
    label = {
        tuple(skn.PromptedModel(model, None).encode([row["text"]])[0]): row["label"]
        for row in task.split("report")
    }
    noise = torch.Generator().manual_seed(0)

    def hook_function(act, hook):
        tokens = current_tokens(hook)
        act = act.clone()
        for row in range(len(act)):
            own = tuple(tokens.ids[row][tokens.is_text[row]].tolist())
            shake = 0.3 * torch.randn(3, generator=noise)
            act[row, :, word_neuron] = float(tiny.VOCABULARY["was"] in own) + shake[0]
            act[row, :, label_neuron] = float(label[own]) + shake[1]
            act[row, :, length_neuron] = len(own) + shake[2]
            act[row, :, 9] = 2.0
            positions = torch.arange(act.shape[1]) - int(tokens.is_padding[row].sum())  # padded on the left
            act[row, :, position_neuron] = positions + 0.3 * torch.randn(act.shape[1], generator=noise)
        return act

    model.add_hook("blocks.1.mlp.hook_post", hook_function)
    return model


def test_detectors_of_a_word_length_and_position_are_flagged_and_a_neuron_of_the_label_is_not(task):
    model = plant(task)
    neurons = skn.NeuronSet([1, 1, 1, 1, 1], [3, 5, 7, 9, 11])
    try:
        frame = skn.studies.word_selectivity(model, prompt_for("gpt2"), task, neurons, n_permutations=199)
    finally:
        model.reset_hooks()
    word, label, length, dead, position = frame.itertuples()
    assert word.word == "was" and word.word_r > 0.7 and word.token_detector and word.p_word == 0.005
    assert label.label_r > 0.7 and not label.token_detector and not label.length_neuron
    assert length.length_r > 0.9 and length.length_neuron
    assert dead.dead and not dead.token_detector and not dead.length_neuron and dead.word_r == 0
    assert position.position_share > 0.9 and position.length_neuron  # the prompt comes after the text
    assert abs(label.position_share) < 0.05 and dead.position_share == 0
    assert frame.position_neuron.tolist() == [False, False, False, False, True]
    assert set(frame.role) == {"report"} and set(frame.n_examples) == {180}


def test_correlations_are_the_point_biserial_ones_of_scipy(task):
    model, prompt = tiny.bridge("bert"), prompt_for("bert")
    neurons = skn.NeuronSet([0, 1], [3, 9])
    frame = skn.studies.word_selectivity(model, prompt, task, neurons, n_permutations=19)
    texts = list(task.split("report")["text"])
    acts = skn.prompts.neuron_activations(model, prompt, texts)[:, neurons.layer, neurons.index]
    words, present = word_presence(texts, 5)
    for number, row in enumerate(frame.itertuples()):
        found = [
            stats.pointbiserialr(column.numpy(), acts[:, number].numpy()).statistic
            for column in present.to_dense()
        ]
        best = max(range(len(words)), key=lambda i, found=found: abs(found[i]))
        assert row.word == words[best] and row.word_r == pytest.approx(found[best], abs=1e-5)
        expected = stats.pointbiserialr(task.split("report")["label"], acts[:, number].numpy()).statistic
        assert row.label_r == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_the_share_that_positions_explain_is_epsilon_squared_over_the_texts_own_tokens(family, task):
    model, prompt = tiny.bridge(family, dtype=torch.float64), prompt_for(family)
    neurons = skn.NeuronSet([1, 0, 1], [4, 7, 30])
    texts = list(task.split("report")["text"])[:40]
    by_place = {}
    for text in texts:
        _, cache = skn.PromptedModel(model, prompt).run_with_cache([text])
        first = {"gpt2": 1, "bert": 1 + 3 + 1}[family]  # BOS; mask, virtual tokens and [CLS]
        for place in range(len(text.split())):
            acts = [cache[f"blocks.{at}.mlp.hook_post"][0, first + place, i] for at, i in neurons]
            by_place.setdefault(place, []).append(torch.stack(acts))
    groups = [torch.stack(values) for values in by_place.values()]
    every = torch.cat(groups)
    within = sum((group - group.mean(0)).square().sum(0) for group in groups) / (len(every) - len(groups))
    expected = 1 - within / every.var(0, correction=1)
    for batch_size in (None, 1, 7):
        run = skn.RunOptions(batch_size=batch_size)
        found = position_share(model, prompt, texts, neurons, run=run)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_layer_that_never_runs_is_no_neuron_without_variance():
    model = tiny.bridge("gpt2")

    def stop(act, hook):
        raise StopAtLayerException(act)

    model.add_hook("blocks.1.hook_in", stop)
    with pytest.raises(RuntimeError, match=r"expected layers \[0, 1\] to show their neurons once, saw \[0\]"):
        position_share(model, None, ["the film", "a plot was"], skn.NeuronSet([1, 0], [3, 4]))


def test_texts_are_cut_to_the_length_that_the_prompt_was_tuned_with(task):
    model, neurons = tiny.bridge("gpt2"), skn.NeuronSet([0, 1], [3, 9])
    short = prompt_for("gpt2", max_length=7)  # BOS, three words and three virtual tokens
    texts = [text for text in task.split("report")["text"] if len(text.split()) > 3]
    first = [" ".join(text.split()[:3]) for text in texts]
    whole = prompt_for("gpt2")
    found = position_share(model, short, texts, neurons)
    torch.testing.assert_close(found, position_share(model, whole, first, neurons), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found, position_share(model, whole, texts, neurons, max_length=7), rtol=0, atol=1e-6
    )
    frame = skn.studies.word_selectivity(model, short, task, neurons, n_permutations=19)
    again = skn.studies.word_selectivity(model, whole, task, neurons, n_permutations=19, max_length=7)
    pd.testing.assert_frame_equal(frame, again)
    lengths = torch.tensor([min(len(text.split()), 3) for text in task.split("report")["text"]])
    acts = skn.prompts.neuron_activations(model, short, list(task.split("report")["text"]))
    expected = stats.pearsonr(lengths.numpy(), acts[:, 1, 9].numpy()).statistic
    assert frame.length_r[1] == pytest.approx(expected, abs=1e-5)
    assert frame.attrs["max_length"] == 7 and frame.attrs["prompts"][0]["n_virtual_tokens"] == 3


def test_places_explain_nothing_on_average_of_noise_however_few_tokens_each_has():
    count = torch.tensor([9, 5, 2, 1, 0])
    values = torch.randn(17, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.stack([part.sum(0) for part in values.split(count.tolist())])
    found = epsilon_squared(count, total, values.square().sum(0))
    assert abs(float(found.mean())) < 4 * float(found.std()) / 4000**0.5 < 0.02 and float(found.min()) < 0


def test_what_is_kept_of_texts_is_their_distinct_words_alone():
    texts = ["The plot was good", "the the the plot", "a good good plot", "a film"]
    words, present = word_presence(texts)
    assert words == ["a", "film", "good", "plot", "the", "was"]
    assert present.is_sparse and present.values().tolist() == [1] * 11
    assert present.to_dense().T.tolist() == [
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1, 1, 0],
        [1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    many = [f"own{number} word{number % 7}" for number in range(20_000)]  # dense: 3.2 GB
    words, present = word_presence(many)
    labels = torch.tensor([float(number % 7 == 3) for number in range(20_000)])
    found = word_correlations(present, labels[:, None])
    assert len(words) == 20_007 and words[int(found.argmax())] == "word3"
    assert float(found.max()) == pytest.approx(1)


def test_nothing_depends_on_how_many_columns_are_worked_on_at_a_time(task, monkeypatch):
    model, prompt, neurons = tiny.bridge("gpt2"), prompt_for("gpt2"), skn.NeuronSet([0, 1, 1], [3, 9, 4])
    whole = skn.studies.word_selectivity(model, prompt, task, neurons, n_permutations=19)
    for most in (1, 180 * 2, 180 * 7):
        monkeypatch.setattr("tl_skillneurons.studies.words.selectivity._MOST_NUMBERS", most)
        frame = skn.studies.word_selectivity(model, prompt, task, neurons, n_permutations=19)
        pd.testing.assert_frame_equal(frame, whole)


def test_the_p_value_of_a_neuron_of_noise_is_corrected_for_the_number_of_words(task):
    neurons = skn.NeuronSet([0] * 48, list(range(48)))
    model = tiny.bridge("gpt2")

    def noise(act, hook):
        return torch.randn(act.shape)

    model.add_hook("blocks.0.mlp.hook_post", noise)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            frame = skn.studies.word_selectivity(model, prompt_for("gpt2"), task, neurons, n_permutations=99)
    finally:
        model.reset_hooks()
    assert (frame.p_word <= 0.05).mean() < 0.2 and (frame.p_length <= 0.05).mean() < 0.2


def by_author(seed=0, n_authors=10, n_texts=10):
    """Texts of authors, each of whom has a word that stands in every text of theirs and in no others."""
    generator = torch.Generator().manual_seed(seed)
    rows = {}
    for author in range(n_authors):
        while sum(own == author for _, own in rows.values()) < n_texts:
            drawn = torch.randint(n_authors, 19, (6,), generator=generator).tolist()
            text = " ".join(tiny.WORDS[i] for i in (author, *drawn))
            rows.setdefault(text, (len(rows) % 2, author))
    return [{"text": text, "label": label, "author": author} for text, (label, author) in rows.items()]


def test_words_of_an_author_explain_no_neuron_that_follows_authors_by_luck():
    train, model = tiny.sentences(40, seed=4), tiny.bridge("gpt2")
    train = [{**row, "author": 100 + number} for number, row in enumerate(train)]
    data = {"train": train[:20], "validation": train[20:], "test": by_author()}
    by_word = torch.randn(tiny.D_VOCAB, 48, generator=torch.Generator().manual_seed(1))

    def follow(act, hook):
        tokens = current_tokens(hook)
        first = (tokens.is_text & ~tokens.is_special).int().argmax(1)
        return by_word[tokens.ids.gather(1, first[:, None])].expand(act.shape).clone()

    model.add_hook("blocks.0.mlp.hook_post", follow)
    frames = {}
    for group in (None, "author"):
        named = {"template": "{text}", "label": "label", "label_words": LABEL_WORDS, "name": "authors"}
        task = skn.Task.from_datasets(data, **named, group=group)
        frames[group] = skn.studies.word_selectivity(
            model, prompt_for("gpt2"), task, skn.NeuronSet([0] * 48, list(range(48))), n_permutations=99
        )
    assert (frames[None].p_word <= 0.05).mean() > 0.9  # what texts shuffled one by one say
    assert (frames["author"].p_word <= 0.05).mean() < 0.2
    assert frames["author"].attrs["unit"] == "group" and frames["author"].attrs["n_units"] == 10
    assert frames[None].attrs["unit"] == "text" and frames[None].attrs["n_units"] == 100
    assert frames[None].word_r.equals(frames["author"].word_r)


def units_of(*sizes):
    return Units(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), "author")


def test_units_of_a_size_that_no_other_has_are_told_and_refused_where_most_texts_are_theirs():
    assert _require_movable(units_of(1, 1, 2, 2, 5, 5), "report") == 0
    assert _require_movable(units_of(*[4] * 20, 3), "report") == 1  # 3 of 83 texts
    with pytest.warns(UserWarning, match=r"1 of 5 units \(author\) .* with 5 of 13 texts.* p is too large"):
        assert _require_movable(units_of(2, 2, 2, 2, 5), "report") == 1
    with pytest.raises(ValueError, match=r"3 of 3 units .* with 9 of 9 .* equally many of each"):
        _require_movable(units_of(2, 3, 4), "report")
    assert _require_movable(units_of(6), "report") == 0  # one unit: its texts are all there is


def test_a_word_of_units_that_stay_in_place_is_never_significant_by_them():
    """Neurons and a word follow two authors of 8 and 7 texts, among single texts: each permutation has it all."""
    units = units_of(8, 7, *[1] * 16)
    a = (units.member < 1).double()[:, None].repeat(1, 3)
    a = (a - a.mean(0)) / (a - a.mean(0)).norm(dim=0)
    present = (units.member < 1).double()[None].to_sparse()
    length = torch.zeros(31, dtype=torch.float64)
    *_, reached = _against_shuffled(a, present, length, torch.zeros(3).double(), 99, 0, units)
    assert (reached[0] == 99).all()


def test_neurons_are_not_measured_on_the_texts_that_chose_them_unless_by_insistence(task):
    texts = frozenset(text_fingerprints(task.split("report")["text"]))
    skill = skn.NeuronSet([0], [3], choice=Choice("select", texts))
    model, prompt = tiny.bridge("gpt2"), prompt_for("gpt2")
    with pytest.raises(ValueError, match="on_chosen_examples=True"):
        skn.studies.word_selectivity(model, prompt, task, skill, n_permutations=19)
    how = {"n_permutations": 19, "on_chosen_examples": True}
    frame = skn.studies.word_selectivity(model, prompt, task, skill, **how)
    assert set(frame.neurons_chosen) == {"on these examples"}


def test_no_neuron_stands_twice_beside_another_and_too_few_are_told():
    model = tiny.bridge("gpt2")
    frame = skn.studies.weight_words(model, skn.NeuronSet([1, 0, 1], [3, 5, 4]), n_random=60)
    assert frame.attrs["smallest_p"] == 1 / 47 and "only 46 distinct controls" in frame.attrs["warnings"][0]
    W_out = model.blocks[1].mlp.W_out.detach()
    words = torch.nn.functional.normalize(model.W_U.detach().T, dim=1)
    near = (torch.nn.functional.normalize(W_out, dim=1) @ words.T).abs().amax(1)
    others = [i for i in range(48) if i not in (3, 4)]
    row = frame[(frame["layer"] == 1) & (frame["index"] == 3) & (frame.side == "out")].iloc[0]
    assert row.random_median == pytest.approx(float(near[others].double().quantile(0.5)), abs=1e-5)
    assert row.p_random == pytest.approx((1 + int((near[others] >= near[3]).sum())) / 47)
    enough = skn.studies.weight_words(model, skn.NeuronSet([1, 0, 1], [3, 5, 4]))
    assert enough.attrs["warnings"] == [] and enough.attrs["smallest_p"] == 1 / 21


def test_weights_that_point_at_a_word_name_it_and_random_neurons_come_less_near():
    model = tiny.bridge("llama")
    good, bad = tiny.VOCABULARY["good"], tiny.VOCABULARY["bad"]
    with torch.no_grad():
        model.blocks[0].mlp.out.original_component.weight[:, 4] = model.W_U[:, good] * 3
        model.blocks[0].mlp.gate.original_component.weight[4] = -model.W_E[bad] * 2
    frame = skn.studies.weight_words(model, skn.NeuronSet([0, 1], [4, 2]), n_words=2).set_index(
        ["layer", "side"]
    )
    assert frame.words[(0, "out")].split()[0] == "good" and frame.cosine[(0, "out")] == pytest.approx(
        1, abs=1e-5
    )
    assert frame.words[(0, "in")].split()[0] == "-bad" and frame.cosine[(0, "in")] == pytest.approx(
        -1, abs=1e-5
    )
    assert frame.p_random[(0, "out")] == frame.p_random[(0, "in")] == pytest.approx(1 / 21)
    assert abs(frame.cosine[(1, "out")]) < 0.8 and frame.random_median.max() < 0.8


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_weights_of_every_family_can_be_read(family):
    frame = skn.studies.weight_words(
        tiny.bridge(family), skn.NeuronSet([0, 1], [4, 2]), n_words=3, n_random=19
    )
    assert len(frame) == 4 and frame.cosine.abs().between(0.05, 1).all()


def test_what_cannot_be_told_is_refused(task):
    model, prompt, neurons = tiny.bridge("gpt2"), prompt_for("gpt2"), skn.NeuronSet([0], [0])
    with pytest.raises(ValueError, match="no word stands in at least 100 of 180 texts"):
        skn.studies.word_selectivity(model, prompt, task, neurons, min_texts=100)
    with pytest.raises(ValueError, match="n_permutations must be at least 19"):
        skn.studies.word_selectivity(model, prompt, task, neurons, n_permutations=5)
    with pytest.raises(ValueError, match=r"position_threshold is a share and must be in \(0, 1\], got 0"):
        skn.studies.word_selectivity(model, prompt, task, neurons, position_threshold=0)
    with pytest.raises(ValueError, match="takes at least 2 texts, got 1"):
        position_share(model, prompt, ["the film"], neurons)
    with pytest.raises(ValueError, match="nothing to read of an empty set"):
        position_share(model, prompt, ["the film", "a film"], skn.NeuronSet([], []))
    with pytest.raises(ValueError, match="at least one neuron"):
        skn.studies.weight_words(model, skn.NeuronSet([], []))
