"""The other side of each row, as somebody who knows Hugging Face, PEFT or TransformerLens would write it."""

import copy
from collections.abc import Sequence
from typing import Any

import peft
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

import tl_skillneurons as skn
from tl_skillneurons.models.sites import neuron_hooks
from tl_skillneurons.prompts.positions import PromptedTokens


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of a batch for a causal model."""
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id, padding_side="left")
    ones = [torch.ones_like(row) for row in tensors]
    return ids, pad_sequence(ones, batch_first=True, padding_side="left")


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask of a batch for a bidirectional model."""
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_id)
    return ids, pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)


def prefixed(embed: Any, ids: Tensor, soft: Tensor) -> Tensor:
    """Embeddings of ``[mask] [virtual tokens] [text]``; ``ids`` holds placeholders for the virtual tokens."""
    text = embed(ids[:, 1 + len(soft) :])
    return torch.cat([embed(ids[:, :1]), soft.expand(len(ids), -1, -1), text], dim=1)


def run_encoder(encoder: Any, batches: Sequence[PromptedTokens], soft: Tensor) -> None:
    """A bare encoder on ready batches, nothing read: the floor of what scoring can cost."""
    embed = encoder.get_input_embeddings()
    with torch.inference_mode():
        for batch in batches:
            encoder(inputs_embeds=prefixed(embed, batch.ids, soft), attention_mask=batch.attention_mask)


def run_decoder(decoder: Any, batches: Sequence[PromptedTokens], softs: Sequence[Tensor]) -> None:
    """A bare decoder on ready batches, nothing read: each text once, then each prompt on a fork of its cache."""
    n_virtual = len(softs[0])
    with torch.inference_mode():
        for batch in batches:
            mask = batch.attention_mask
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
            cache = DynamicCache()
            decoder(
                input_ids=batch.ids[:, :-n_virtual],
                attention_mask=mask[:, :-n_virtual],
                position_ids=position_ids[:, :-n_virtual],
                past_key_values=cache,
            )
            for soft in softs:
                decoder(
                    inputs_embeds=soft.expand(len(mask), -1, -1),
                    attention_mask=mask,
                    position_ids=position_ids[:, -n_virtual:],
                    past_key_values=_fork(cache),
                )


def _fork(cache: DynamicCache) -> DynamicCache:
    new = copy.copy(cache)
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def correct_from_stacks(model: Any, prompt: skn.SoftPrompt, task: skn.Task, batch_size: int = 32) -> Tensor:
    """Right answers of each neuron's rule ``[layer, position, neuron]``, all activations cached and stacked first.

    Wang et al. (2022), section 3.2: the baseline activation is the mean over role ``baseline``, an activation
    above it means label 1. Also predictivity, max(accuracy, 1 - accuracy) at the best position.
    """
    prompted = skn.PromptedModel(model, prompt)
    names = list(neuron_hooks(model).values())
    n_positions = 1 + prompt.n_virtual_tokens  # the mask as well
    stacked = {}
    with prompt.attached(model), torch.no_grad():
        for role in ("baseline", "select"):
            ids = prompted.encode(list(task.split(role)["text"]))
            rows = []
            for start in range(0, len(ids), batch_size):
                tokens = prompted.assemble(ids[start : start + batch_size])
                _, cache = model.run_with_cache(
                    tokens.ids, attention_mask=tokens.attention_mask, names_filter=names
                )
                rows.append(torch.stack([cache[name][:, :n_positions] for name in names], dim=1))
            stacked[role] = torch.cat(rows)
    labels = torch.tensor(task.split("select")["label"], dtype=torch.bool)
    fires = stacked["select"] > stacked["baseline"].mean(0)
    correct = (fires == labels[:, None, None, None]).sum(0)
    accuracy = correct / len(labels)
    torch.maximum(accuracy, 1 - accuracy).amax(1)
    return correct


class PeftTuning:
    """PEFT's prompt tuning of a causal model, read out at the last position over the label words."""

    def __init__(self, hf: Any, *, n_virtual_tokens: int, label_ids: Tensor, pad_id: int) -> None:
        config = peft.PromptTuningConfig(
            task_type=peft.TaskType.CAUSAL_LM, num_virtual_tokens=n_virtual_tokens
        )
        self.model = peft.get_peft_model(hf, config)
        self.label_ids, self.pad_id = label_ids, pad_id
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        if [tuple(p.shape) for p in trainable] != [(n_virtual_tokens, hf.config.hidden_size)]:
            raise RuntimeError(f"PEFT should train the virtual tokens alone, got {trainable}")
        self.optimizer = torch.optim.Adam(trainable, lr=0.01)

    def step(self, rows: Sequence[Sequence[int]], labels: Tensor) -> float:
        """One step of Adam; the vocabulary is projected at the last position only."""
        ids, mask = left_padded(rows, self.pad_id)
        logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
        if logits.shape[1] != 1:
            raise RuntimeError(f"PEFT should project one position, got logits {tuple(logits.shape)}")
        loss = functional.cross_entropy(logits[:, -1, self.label_ids], labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class MaskedTuning:
    """Prompt tuning by hand: ``inputs_embeds`` into a masked language model, label-word logits at the mask."""

    def __init__(
        self, hf: transformers.BertForMaskedLM, *, n_virtual_tokens: int, label_ids: Tensor, tokenizer: Any
    ) -> None:
        self.hf, self.label_ids, self.pad_id = hf, label_ids, tokenizer.pad_token_id
        self.embed = hf.get_input_embeddings()
        self.before = [tokenizer.mask_token_id] + n_virtual_tokens * [tokenizer.pad_token_id]
        self.soft = torch.nn.Parameter(0.1 * torch.randn(n_virtual_tokens, self.embed.embedding_dim))
        self.optimizer = torch.optim.Adam([self.soft], lr=0.01)

    def step(self, rows: Sequence[Sequence[int]], labels: Tensor) -> float:
        """One step of Adam; the model gives its logits at every position, as it does when called."""
        ids, mask = right_padded([self.before + list(row) for row in rows], self.pad_id)
        logits = self.hf(inputs_embeds=prefixed(self.embed, ids, self.soft), attention_mask=mask).logits
        loss = functional.cross_entropy(logits[:, 0, self.label_ids], labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
