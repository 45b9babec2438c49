"""A TransformerLens model with a soft prompt in place: batches of text in, class logits and activations out.

Only the read-out position is projected, and only onto the label words: the run stops at the last hook point
before the vocabulary, and ``W_U``'s columns of the label words do the rest. That is done where it was seen to equal
the head that runs (:func:`~tl_skillneurons.models.verify`) and nothing was put on that head since (adapters, hooks,
parametrisations); else all of it runs, and the label words are read from its logits. An encoder without a
language-model head is read out by the linear read-out that was trained with the prompt.

No result depends on what else is in a batch, on its size or on the padding side (see
:mod:`~tl_skillneurons.prompts.positions`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from tl_skillneurons._checks import require_option, require_seed
from tl_skillneurons.models.batches import run_batches
from tl_skillneurons.models.hooks import Hooks
from tl_skillneurons.models.prefill import fork, prefill
from tl_skillneurons.models.sites import embedding_width, is_causal, require_eval, require_supported
from tl_skillneurons.models.tokenizing import label_tokens
from tl_skillneurons.models.verification import require
from tl_skillneurons.prompts import _forward, _word_scores
from tl_skillneurons.prompts.attached import VirtualTokens, attach
from tl_skillneurons.prompts.positions import Positions, PromptedTokens, all_act_at
from tl_skillneurons.prompts.run import RunOptions, require_tuned_for
from tl_skillneurons.prompts.soft_prompt import SoftPrompt
from tl_skillneurons.prompts.text_batch import TextLayout
from tl_skillneurons.prompts.writing import Writing, completions
from tl_skillneurons.prompts.written import Completions
from tl_skillneurons.tasks.chat import Chat
from tl_skillneurons.tasks.task import WORD_SCORES, Task


class PromptedModel:
    """A model, a soft prompt (or none) and label words, ready for batches of text.

    It does not pose as a model: TransformerLens' tools take the real one, inside ``prompt.attached(model)``.

    Args:
        model: A TransformerBridge in eval mode, see :func:`tl_skillneurons.load_model`.
        prompt: ``None`` runs the text alone.
        label_words: Class id to a word, or to a token id. Not needed with a linear read-out, nor for activations. A
            causal model's words may have several tokens; a masked language model's have one, for it fills one mask.
        prepend_bos: Overrides what the prompt was trained with (else ``cfg.default_prepend_bos``).
        max_length: Longest sequence in tokens, virtual tokens included; by default what the prompt was tuned
            with, else what the model can take. Longer texts are cut at their end, the prompt never.
        padding_side: ``None`` pads causal models on the left and bidirectional ones on the right. No result
            depends on it.
        run: Batches, and keys and values of texts, taken from there wherever a run touches only prompt positions.
        chat: What stands around each text in a conversation with a chat model; by default what the prompt was tuned
            in. The prompt then stands where the assistant's answer would begin.
        word_score: What a class's score is where a word has several tokens: the ``"sum"`` of their log-probabilities,
            their ``"mean"``, or the sum minus the same ``"without_text"`` (of words of one token too).

    Raises:
        ValueError: When the model, the prompt and the label words don't go together; the message says which.

    Example:
        >>> prompted = skn.PromptedModel(model, prompt, {0: " negative", 1: " positive"})
        >>> prompted.class_logits(["a fine film"])  # [1, 2]
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompt: SoftPrompt | None,
        label_words: Mapping[int, str | int] | None = None,
        *,
        prepend_bos: bool | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        run: RunOptions = RunOptions(),
        chat: Chat | None = None,
        word_score: str = "sum",
    ) -> None:
        require_supported(model)
        require_eval(model)
        require(model, "logits", "special tokens", *(() if prompt is None else ("prompt",)))
        if prompt is not None:
            prompt.require_fits(model)
        if run.cache is not None and run.cache.model is not model:
            raise ValueError("the input cache is of another model; make one of this model: InputCache(model)")
        how: dict[str, Any] = {"max_length": max_length, "padding_side": padding_side, "chat": chat}
        self.layout = TextLayout.of(model, prompt, prepend_bos=prepend_bos, **how)
        self.model, self.prompt, self.run = model, prompt, run
        self.causal = is_causal(model)
        self.linear = None if prompt is None else prompt.readout
        self.words: _word_scores.LabelTokens | None = None
        require_option(word_score, "word_score", WORD_SCORES)
        if label_words is not None and self.linear is None:
            ids = label_tokens(model, label_words)
            self.words = _word_scores.LabelTokens(tuple(map(tuple, ids)), word_score)
            _word_scores.require_one_masked(self.words, self.causal, model)
            self.layout = self.layout.with_room(self.words.longest - 1, max_length)

    @classmethod
    def for_task(
        cls,
        model: TransformerBridge,
        prompt: SoftPrompt | None,
        task: Task,
        *,
        max_length: int | None = None,
        run: RunOptions = RunOptions(),
    ) -> "PromptedModel":
        """The model with a prompt, the label words of ``task`` and its chat; the prompt was tuned on it, if it says on
        what.

        Raises:
            ValueError: For a prompt that was tuned on a task with another template, other label words, or labels in
                another order.
        """
        require_tuned_for(prompt, task)
        how: dict[str, Any] = {"chat": task.chat, "word_score": task.word_score}
        return cls(model, prompt, task.label_words, max_length=max_length, run=run, **how)

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens, virtual tokens included; ``None`` where the model states no limit."""
        return self.layout.max_length

    @property
    def prepend_bos(self) -> bool | None:
        """Whether texts get a BOS; ``None`` where the question does not arise (bidirectional models, chats)."""
        return self.layout.prepend_bos

    @property
    def chat(self) -> Chat | None:
        """What stands around each text in a conversation; ``None`` for texts that stand alone."""
        return None if self.layout.chat is None else self.layout.chat.chat

    @property
    def n_prompt_positions(self) -> int:
        """How many positions the prompt takes, the mask before a bidirectional model's included."""
        return self.layout.n_prompt_positions

    @property
    def n_classes(self) -> int | None:
        """How many class logits there are, ``None`` without label words or a read-out."""
        if self.linear is not None:
            return len(self.linear)
        return None if self.words is None else len(self.words.ids)

    @property
    def label_ids(self) -> Int[Tensor, " n_classes"] | None:
        """The token of each class's word, where a class is one logit; else ``None``."""
        if self.words is None or self.words.need_scores:
            return None
        return torch.tensor([own for (own,) in self.words.ids])

    def tokens(self, texts: Sequence[str]) -> PromptedTokens:
        """The batch of ``texts`` as token ids with the virtual tokens in place, with mask and positions."""
        return self.assemble(self.encode(texts))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text alone; see :class:`~tl_skillneurons.prompts.text_batch.TextLayout`."""
        return self.layout.encode(texts)

    def assemble(self, text_ids: list[list[int]], example: Sequence[int] | None = None) -> PromptedTokens:
        """Put the virtual tokens beside texts that :meth:`encode` made ids of."""
        return self.layout.assemble(text_ids, example)

    def batches(self, text_ids: list[list[int]], *, suffix_alone: bool = False) -> list[list[int]]:
        """Which texts (as :meth:`encode` gives them) run together: those of similar length, the longest first.

        Args:
            suffix_alone: Whether the texts' keys and values are there, so that the virtual tokens alone run.
        """
        return self.layout.batches(text_ids, self.run, suffix_alone=suffix_alone)

    def cut(self, text_ids: list[list[int]]) -> list[list[int]]:
        """The texts as they stand beside the prompt: without what is more than the model takes."""
        return self.layout.cut(text_ids)

    def lengths(self, text_ids: list[list[int]]) -> list[int]:
        """How many tokens each text has with the prompt in place, and cut to what the model takes."""
        return self.layout.lengths(text_ids)

    def n_truncated(self, texts: Sequence[str]) -> int:
        """How many of ``texts`` are longer than what the prompt leaves room for, and lose their end."""
        return self.layout.n_cut(self.encode(texts))

    @contextmanager
    def attached(self) -> Iterator[VirtualTokens]:
        """The prompt's virtual tokens in place; without a prompt, only the positions are made known to hooks."""
        embedding = (
            torch.empty(0, embedding_width(self.model)) if self.prompt is None else self.prompt.embedding
        )
        with attach(self.model, embedding) as virtual:
            yield virtual

    def class_logits(self, texts: Sequence[str], fwd_hooks: Hooks = ()) -> Float[Tensor, "batch n_classes"]:
        """Logits of the classes at the read-out position, columns in the order of the class ids, float32 or wider; of
        label words of several tokens their scores, which are log-probabilities.

        Args:
            texts: Any number; they run in batches of similar length, and the rows come back in the order
                given.
            fwd_hooks: Run in every batch, for example ``ablate(...)``. They act on the text and the prompt; those that
                declare that they act at every position on its own (:class:`~tl_skillneurons.prompts.ActsAt`, "all"), on
                the tokens of longer label words as well.

        Raises:
            ValueError: Without label words or a read-out, for hooks beyond the read-out, which would never fire,
                or when logits are not finite.
        """
        with self.answering(texts) as logits:
            return logits(fwd_hooks)

    @contextmanager
    def answering(
        self, texts: Sequence[str]
    ) -> Iterator[Callable[[Hooks], Float[Tensor, "batch n_classes"]]]:
        """A function from hooks to what :meth:`class_logits` gives, for as many runs of the same texts as are wanted:
        texts are tokenized, and kept ones looked at, once for all of them."""
        ids = self.encode(texts)
        if not ids:
            raise ValueError("texts must not be empty")
        batches = cache(lambda apart: self.batches(ids, suffix_alone=apart))
        assembled = cache(lambda batch: self.assemble([ids[i] for i in batch], batch))
        joined = nullcontext() if self.run.cache is None else self.run.cache.keeping_batches()
        with self.attached() as virtual, joined:

            def logits(fwd_hooks: Hooks = ()) -> Float[Tensor, "batch n_classes"]:
                apart = self.run.cache is not None and self.runs_apart(virtual, fwd_hooks)
                rows: dict[int, Tensor] = {}

                def run(batch: list[int]) -> None:
                    tokens = assembled(tuple(batch))
                    past = self.past(tokens) if apart else None
                    rows.update(zip(batch, self.read_out(tokens, virtual, fwd_hooks, past), strict=True))

                run_batches(batches(apart), run)
                return _forward.finite_logits(torch.stack([rows[i] for i in range(len(ids))]), texts)

            yield logits

    def accuracy(self, task: Task, role: str = "report", fwd_hooks: Hooks = ()) -> float:
        """Share of the examples of ``role`` whose highest class logit is that of their label, in [0, 1].

        Raises:
            ValueError: Where the label words are not those of the task, in its order.
        """
        if self.words is not None:
            _word_scores.require_words_of(self.model, self.words, task)
        split = task.split(role)
        with torch.no_grad():
            logits = self.class_logits(list(split["text"]), fwd_hooks)
        return float((logits.argmax(1).cpu() == torch.tensor(split["label"])).double().mean())

    @cached_property
    def last_mlp(self) -> str | None:
        """The hook point at which the last MLP's input can be cut to one position that is read, if any."""
        return _forward.last_mlp_that_can_be_cut(self.model, self.head)

    @property
    def head(self) -> str:
        """The last hook point that every position passes, before the language-model head."""
        return "unembed.hook_in" if self.causal else "mlm_head.hook_in"

    def runs_apart(self, virtual: VirtualTokens, fwd_hooks: Hooks = ()) -> bool:
        """Whether a run with these hooks may take the text's keys and values as they are without them.

        Only where every hook declares that it acts at the prompt alone
        (:class:`~tl_skillneurons.prompts.positions.ActsAt`, as ``ablate(positions="prompt")`` does), and nobody
        else's hooks, TransformerLens' or torch's, are anywhere on the model. Kept texts are looked at once in each
        :meth:`attached`: see :meth:`InputCache.check`.
        """
        if not (all_act_at("prompt", fwd_hooks) and virtual.alone and self.layout.text_runs_apart):
            return False
        if self.run.cache is not None and not virtual.cache_checked:
            self.run.cache.check()
            virtual.cache_checked = True
        return True

    def past(self, tokens: PromptedTokens) -> DynamicCache:
        """The keys and values of the batch's texts, from the input cache where there is one."""
        n = self.layout.n_virtual_tokens
        ids, mask = tokens.ids[:, :-n], tokens.attention_mask[:, :-n]
        cache = self.run.cache
        return prefill(self.model, ids, mask) if cache is None else cache.past(ids, mask)

    def read_out(
        self,
        tokens: PromptedTokens,
        virtual: VirtualTokens,
        fwd_hooks: Hooks = (),
        past: DynamicCache | None = None,
    ) -> Float[Tensor, "batch n_classes"]:
        """Class logits of one batch inside :meth:`attached`; gradients reach the prompt and its read-out.

        Args:
            past: What :meth:`past` gave, where :meth:`runs_apart`; ``None`` runs the text too.
        """
        _word_scores.require_read_out(self, fwd_hooks)
        if self.words is not None and self.words.need_scores:
            return _word_scores.word_scores(self, self.words, tokens, virtual, fwd_hooks, past)
        n = self.layout.n_virtual_tokens
        columns = tokens.readout if past is None else tokens.last(n).readout
        runs_head = not self.causal and self.linear is None
        if self.linear is None and not virtual.head_is_plain:
            logits = self.forward(tokens, virtual, fwd_hooks, past)
            assert self.label_ids is not None  # for type checkers: refused above
            return _forward.logits_at(logits, columns, self.label_ids)
        ends, (_, keep) = _forward.stopping_at(columns, head=self.head, runs_head=runs_head)
        if all_act_at("all", fwd_hooks) and virtual.alone and self.last_mlp is not None:
            fwd_hooks = [*fwd_hooks, (self.last_mlp, keep)]  # the last MLP runs at the read-out alone
        hidden = self.forward(tokens, virtual, [*fwd_hooks, *ends], past)
        if self.linear is not None:
            return hidden.to(self.linear.dtype) @ self.linear.T.to(hidden.device)
        assert self.label_ids is not None  # for type checkers: refused above
        return _forward.label_logits(self.model, hidden, self.label_ids)

    def forward(
        self,
        tokens: PromptedTokens,
        virtual: VirtualTokens,
        fwd_hooks: Hooks = (),
        past: DynamicCache | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run one batch inside :meth:`attached`; keyword arguments go to ``model.run_with_hooks``.

        With ``past`` only the virtual tokens run, on top of it: hooks see their positions alone.
        """
        kwargs["attention_mask"] = tokens.attention_mask
        if past is not None:
            tokens = tokens.last(self.layout.n_virtual_tokens)
            kwargs["past_key_values"] = fork(past)
        virtual.batch = tokens
        try:
            return _forward.run_hooked(self.model, tokens.ids, fwd_hooks, kwargs, virtual.points)
        finally:
            virtual.batch = None

    def generate(
        self,
        texts: Sequence[str],
        max_new_tokens: int = 32,
        *,
        interventions: Hooks = (),
        positions: Positions | None = None,
        temperature: float | int | None = None,
        top_k: int | None = None,
        top_p: float | int | None = None,
        seed: int = 0,
        end_ids: Sequence[int] | None = None,
        use_past_kv_cache: bool = True,
    ) -> Completions:
        """What the model writes after each text with the prompt in place (:mod:`~tl_skillneurons.prompts.writing`).

        Without interventions, what Hugging Face's ``generate`` writes by the model's generation settings.

        Args:
            max_new_tokens: Most tokens of an answer, its end token included.
            interventions: Hooks, for example ``ablate(skill, how=Scale(2.0), positions="generated")``. A function of
                your own is quick where it declares to treat each position on its own: ``ActsAt("all", function)``.
            positions: Where all of them act: "prompt", "text", "template", "generated", "all"; else where each says.
            temperature: Draws tokens, at this temperature; ``None`` takes the likeliest one.
            top_k, top_p: Draw among the ``k`` likeliest tokens, or the likeliest ones of together ``p``.
            seed: Of what is drawn after a text, alone or among others; a text that is asked again is answered anew.
            end_ids: Token ids that end an answer; by default the model's own.
            use_past_kv_cache: Keep keys and values; without it every token runs all that stands before it again.

        Raises:
            ValueError: For a bidirectional model, for more tokens than the model takes, for options that make no sense
                together, or when logits are not finite.

        Example:
            >>> prompted = skn.PromptedModel(model, prompt)
            >>> more = skn.ablate(skill, how=Scale(2.0), positions="generated")
            >>> prompted.generate(["How was the film?"], interventions=more).answers
        """
        require_seed(seed)
        how = Writing.of(self, max_new_tokens, temperature, top_k, top_p, seed, end_ids, use_past_kv_cache)
        return completions(self, texts, how, interventions, positions)

    def run_with_hooks(self, texts: Sequence[str], fwd_hooks: Hooks = (), **kwargs: Any) -> Any:
        """``model.run_with_hooks`` on one batch of texts with the prompt in place; positions as in :meth:`tokens`."""
        with self.attached() as virtual:
            return self.forward(self.tokens(texts), virtual, fwd_hooks, **kwargs)

    def run_with_cache(self, texts: Sequence[str], **kwargs: Any) -> Any:
        """``model.run_with_cache`` on one batch of texts with the prompt in place; positions as in :meth:`tokens`."""
        with self.attached() as virtual:
            tokens = virtual.batch = self.tokens(texts)
            return self.model.run_with_cache(tokens.ids, attention_mask=tokens.attention_mask, **kwargs)
