"""The loaded model as lm-eval's LM. Needs lm-eval, so it is imported only where tasks run.

lm-eval's own class for transformers loads a second model and cannot run a sharded one. Here every rank runs lm-eval
on the same requests, as if it were alone, and the ranks divide the forwards inside.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from trainer.errors import DataError, ModelError
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.evaluate.tasks.likelihood import log_likelihoods
from trainer.model.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)


class EngineLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """Answers lm-eval's three kinds of requests with the engine. Collective: every rank, same requests."""

    def __init__(self, model: TaskModel, tokenizer: Tokenizer) -> None:
        """Take the model and its tokenizer.

        Raises:
            ModelError: The tokenizer has neither BOS nor EOS for the first token to follow.
        """
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        prefix = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        if prefix is None:
            raise ModelError(
                "`model.tokenizer` must have a BOS or EOS token for benchmark tasks, but has neither instead. Name "
                "the tokenizer of the model you mean."
            )
        self._prefix: int = prefix
        self._special = {tokenizer.decode([token]): token for token in tokenizer.special_ids}

    @property
    def eot_token_id(self) -> int:
        """Return the token that ends a text."""
        return self._prefix if self._tokenizer.eos_id is None else self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Return the token that a text without context follows: BOS, else EOS."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """Return what names the tokenizer and its chat template."""
        return self._tokenizer.digest

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Encode; BOS comes first where the tokenizer adds one, once even if the text brings its own."""
        encode = (
            self._tokenizer.encode_fragments
            if add_special_tokens is False
            else self._tokenizer.encode_documents
        )
        return encode([string])[0]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return (log-likelihood in nats, greedy) of each continuation."""
        self._check_same("loglikelihood", requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
        _LOG.info("Tasks: %d log-likelihoods.", len(requests))
        return log_likelihoods(
            self._model, [(context, continuation) for _, context, continuation in requests]
        )

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each text in nats, every token but BOS predicted once.

        Windows of the model's context do not overlap but for what fills the last one. lm-eval's own class scores
        BOS after BOS too, where the tokenizer adds one; here the text begins after one BOS.
        """
        self._check_same("loglikelihood_rolling", requests)
        pairs, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self._without_prefix(self._tokenizer.encode_fragments([text])[0]),
                prefix_token=self._prefix,
                max_seq_len=self._model.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((context, continuation))
                owners.append(number)
        _LOG.info("Tasks: %d texts in %d windows.", len(requests), len(pairs))
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, log_likelihoods(self._model, pairs), strict=True):
            totals[owner] += nats
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Return each prompt's most likely continuation up to a stop or max_gen_toks (256 where none is given)."""
        self._check_same("generate_until", requests)
        prompts = []
        for request in requests:
            context, options = request.args
            chosen = normalize_gen_kwargs(options)
            stops = tuple(stop for stop in chosen["until"] if stop)
            special = frozenset(self._special[stop] for stop in stops if stop in self._special)
            ids = self.tok_encode(context) or [self._prefix]
            prompts.append(Prompt(ids, int(chosen["max_gen_toks"]), stops, special))
        _LOG.info("Tasks: %d answers to generate.", len(prompts))
        answers = continue_greedily(self._model, prompts, self._readable)
        return [
            postprocess_generated_text(self._readable(ids), stop=list(prompt.stops), think_end_token=None)
            for ids, prompt in zip(answers, prompts, strict=True)
        ]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render turns as a prompt; a system turn that the template refuses is left out, as lm-eval does."""
        try:
            return self._tokenizer.render_chat(
                chat_history, None, add_generation_prompt, continue_final_message=not add_generation_prompt
            )
        except DataError:
            others = [turn for turn in chat_history if turn["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            return self.apply_chat_template(others, add_generation_prompt)

    def _readable(self, ids: list[int]) -> str:
        """Return the text without special tokens."""
        special = self._tokenizer.special_ids
        return self._tokenizer.decode([token for token in ids if token not in special])

    def _without_prefix(self, ids: list[int]) -> list[int]:
        return ids[1:] if ids[:1] == [self._prefix] and self._tokenizer.adds_bos else ids

    def _check_same(self, kind: str, requests: Any) -> None:
        """Raise on every rank when ranks were asked different things: they would wait for each other for ever."""
        text = json.dumps([kind, [request.args for request in requests]], default=str)
        digests = self._model.policy.mesh.gather(
            hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        )
        if len(set(digests)) > 1:
            raise DataError(
                "A benchmark task must ask every rank the same, but its questions differ instead. Take chance out of "
                "its process_docs and few-shot sampler."
            )
