"""How often a model refuses prompts, by phrases that refusals have; evaluate/refusal_phrases.py says what they miss."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.asked import EMPTY, HARMFUL, REFUSED, RefusalsConfig
from trainer.data.store.prepared import digest_of
from trainer.errors import ConfigError
from trainer.evaluate.prompt_file import read_prompt_file
from trainer.evaluate.refusal_phrases import KEY, is_refusal, read_phrases, refusals_key
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
from trainer.evaluate.tasks.score import TaskScore, share_score
from trainer.evaluate.tasks.spoken_calls import without_reasoning
from trainer.model.tokenizer import Tokenizer


class RefusalTask:
    """Asks the prompts of one file."""

    def __init__(
        self, name: str, prompts: Sequence[list[int]], phrases: Sequence[str], max_new_tokens: int
    ) -> None:
        """Take prompts in token ids."""
        self._name = name
        self._prompts = prompts
        self._phrases = phrases
        self._max_new_tokens = max_new_tokens

    @property
    def digest(self) -> str:
        """Name what is asked and how it is judged."""
        return digest_of([self._name, list(self._prompts), list(self._phrases), self._max_new_tokens])

    def run(self, model: TaskModel, tokenizer: Tokenizer) -> list[TaskScore]:
        """Return the shares of prompts that are refused, and that are answered with nothing."""
        end = tokenizer.turn_end_id
        stops = frozenset() if end is None else frozenset([end])
        prompts = [Prompt(ids, self._max_new_tokens, (), stops) for ids in self._prompts]
        answers = [tokenizer.decode(ids) for ids in continue_greedily(model, prompts, tokenizer.decode)]
        return judge_refusals(self._name, answers, self._phrases)


def judge_refusals(name: str, answers: Sequence[str], phrases: Sequence[str]) -> list[TaskScore]:
    """Return the scores of answers: `refused` has a phrase, `empty` has no word, as one of reasoning that is cut."""
    said = [without_reasoning(answer).strip() for answer in answers]
    refused = [is_refusal(answer, phrases) for answer in said]
    return [
        share_score(name, REFUSED, refused, name == HARMFUL),
        share_score(name, EMPTY, [not answer for answer in said], False),
    ]


def ask_refusals(options: RefusalsConfig, tokenizer: Tokenizer) -> list[RefusalTask]:
    """Return a task for every file of prompts.

    Raises:
        ConfigError: A file is none of prompts or phrases, or there is no chat template for it.
        DataError: The chat template refuses a conversation.
    """
    phrases = read_phrases(options.phrases)
    found = []
    for task, file in options.files.items():
        key = refusals_key(task)
        prompts = read_prompt_file(key, file, options.apply_chat_template)
        if any(prompt.messages for prompt in prompts) and not tokenizer.has_chat_template:
            raise ConfigError(
                f"`{key}` must hold texts for a tokenizer without a chat template, but has turns instead. Set "
                f"{KEY}.apply_chat_template=false and write `prompt`, or set model.chat_template."
            )
        texts = [
            tokenizer.render_chat(prompt.messages, None, True) if prompt.messages else prompt.text
            for prompt in prompts
        ]
        found.append(RefusalTask(task, tokenizer.encode_documents(texts), phrases, options.max_new_tokens))
    return found
