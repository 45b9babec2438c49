"""When do skill neurons appear? A small model is pre-trained, and they are looked for at eight checkpoints of it.

A causal model of 2 million parameters reads sentences of the built-in grammars: some minutes on two CPU cores.
``python pretrain_checkpoints.py FOLDER`` keeps model and measures there; the same call goes on where it stopped.
"""

# %% Text: sentences with a verb that agrees with its subject, and film reviews; none of the task's own sentences
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
import transformers as hf
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import tl_skillneurons as skn

SMALL = os.environ.get("SKILLNEURONS_SMALL") == "1"  # a smaller model and fewer steps, for a quick check
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
KEPT = (0, 8, 40) if SMALL else (0, 10, 25, 50, 100, 200, 400, 800)  # steps of pre-training
WIDTH = 64 if SMALL else 192
N_READ = 600 if SMALL else 6000  # pairs of sentences of each kind


def sentences(kind, n_pairs, seed):
    task = skn.minimal_pairs(kind, n_pairs=n_pairs, seed=seed)
    rows = [row for role in ("train", "select", "report") for row in task.split(role)]
    return [(row["text"], task.label_words[row["label"]]) for row in rows]


task = skn.minimal_pairs("subject_verb", n_pairs=120 if SMALL else 800)
own = {text for text, _ in sentences("subject_verb", 120 if SMALL else 800, 0)}
corpus = [f"{text}{verb} here ." for text, verb in sentences("subject_verb", N_READ, 1) if text not in own]
corpus += [text for text, _ in sentences("movie_reviews", N_READ, 1)]
random.Random(0).shuffle(corpus)

# %% A tokenizer of whole words, and a model that knows nothing
split_words = pre_tokenizers.Whitespace()
words = sorted({word for text in [*corpus, *own] for word, _ in split_words.pre_tokenize_str(text)})
special = ["<s>", "</s>", "<pad>", "<unk>"]
by_word = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>"))
by_word.pre_tokenizer = split_words
by_word.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
tokenizer = hf.PreTrainedTokenizerFast(
    tokenizer_object=by_word,
    bos_token="<s>",
    eos_token="</s>",
    pad_token="<pad>",
    unk_token="<unk>",
    add_bos_token=True,
)
config = hf.LlamaConfig(
    vocab_size=len(by_word.get_vocab()),
    hidden_size=WIDTH,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=3 * WIDTH,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)


# %% Pre-training: predict the next word; a copy is kept at each of the steps above
def batch_at(step, size=32):
    rows = random.Random(step).choices(corpus, k=size)
    ids = tokenizer(rows, padding=True, return_tensors="pt")
    return {**ids, "labels": ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)}


def pretrain():
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(config)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters, {len(corpus)} sentences"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(KEPT[-1] + 1):
        loss = model(**batch_at(step)).loss
        if step in KEPT:
            print(f"step {step}: loss {loss:.3f}")
            model.save_pretrained(folder / f"step{step}")
            tokenizer.save_pretrained(folder / f"step{step}")
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min((step + 1) / 20, 1 - step / (KEPT[-1] + 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


hf.utils.logging.disable_progress_bar()
checkpoints = {f"step {step}": folder / f"step{step}" for step in KEPT}
if not all((place / "tokenizer.json").exists() for place in checkpoints.values()):
    pretrain()

# %% The same discovery at every checkpoint: prompts tuned anew, and those of the last one carried back
tuning = {"n_virtual_tokens": 4, "n_steps": 10 if SMALL else 60, "seeds": [0]}
trained = skn.load_model(checkpoints[f"step {KEPT[-1]}"], verbose=False)
shuffled = {
    "layers shuffled": skn.models.shuffle_layers(trained)
}  # a control: trained parts, no trained whole
console = Console(width=160)
for prompts, what in (("each", "tuned at every checkpoint"), ("last", "tuned at the last, carried back")):
    found = skn.studies.over_checkpoints(
        {**shuffled, **checkpoints}, task, prompts=prompts, folder=folder / f"prompts-{prompts}", **tuning
    )
    print(f"\nprompts {what}")
    console.print(found.to_table())
    since = found.appears()
    print(
        f"neurons above the level of luck at every checkpoint from {since} on" if since else "none at the end"
    )

# %% What this does not show: why they appear, that the model uses them (measure_effects), or that large models learn
# in this order. "random" are random neurons of the layers that the last checkpoint's best neurons are in.
