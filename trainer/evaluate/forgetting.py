"""The forgetting measurement: the base model before the first step against the tuned one, on the same held-out text.

Collective: every rank calls everything here in the same order; rank 0 writes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.state import TrainState
from trainer.config.data import Role
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.config.tune import Quantise
from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore, Store
from trainer.data.types import TokenizerLike
from trainer.dist.group import Group
from trainer.engine.engine import Engine
from trainer.evaluate.base import BaseEvaluation, DamagedBase, read_base, write_base
from trainer.evaluate.compare import SetComparison, compare_set, mean_with_interval
from trainer.evaluate.conversations import ChatPrompts
from trainer.evaluate.held_out import HeldOut, PieceLosses, held_out_pieces
from trainer.evaluate.kl import TOP, divergence_by_piece, take_references
from trainer.evaluate.record import FILE_NAME, VERSION
from trainer.metrics.device import describe_device
from trainer.mix.mixing import Mixing

_LOG = logging.getLogger(__name__)
BASE_FILE = "base_evaluation.npz"
CHAT = "chat"


@dataclass(slots=True)
class Subject:
    """The model that is measured and the text it is measured on."""

    engine: Engine
    group: Group
    flash: bool
    held_out: HeldOut
    prompts: HeldOut
    """New-task text and conversations for the KL to the base."""


class Forgetting:
    """Keeps what the base model said and compares the tuned model with it."""

    def __init__(
        self, run_dir: Path, config: RunConfig, subject: Subject, base_digest: str, base_name: str
    ) -> None:
        """Take what identifies the base: its digest goes into the key of its evaluation."""
        self._path = run_dir / BASE_FILE
        self._run_dir = run_dir
        self._config = config
        self._subject = subject
        self._base_digest = base_digest
        self._base_name = base_name
        self._base: BaseEvaluation | None = None

    def open(self, data_digest: str) -> None:
        """Find the base's evaluation: of this run, or in the cache of another run of the same base and data.

        Raises:
            DataError: The run directory holds the evaluation of another base.
        """
        config = self._config
        described = {
            "base": self._base_digest,
            "data": data_digest,
            "seq_len": config.data.seq_len,
            "packs": [config.data.max_validation_packs, TOP],
            "dtype": config.zero.dtype,
        }
        self._key = digest_of(described)
        # A run may go on with other GPUs; another run takes over only what its own kind of device and kernels made.
        arithmetic = [
            describe_device().split(",")[0],
            config.model.attention.value,
            config.model.kernels.value,
        ]
        alike = digest_of([self._key, *arithmetic, config.evaluate.kl_packs])
        self._cache = cache = Path(config.data.cache_dir) / "evaluations" / f"{alike}.npz"

        def find() -> BaseEvaluation | None:
            if self._path.exists():
                return read_base(self._path, self._key)
            if cache.exists():
                try:
                    found = read_base(cache, self._key)
                except DamagedBase as error:
                    _LOG.warning("%s The base model is evaluated anew.", error)
                    return None
                write_base(self._path, found)
                return found
            return None

        self._base = self._subject.group.from_first(find)

    def measure_base(self) -> dict[str, float]:
        """Evaluate the model before the first step, or take what is known of it; return held-out losses."""
        subject = self._subject
        if self._base is None:
            pieces = held_out_pieces(subject.engine, subject.held_out, subject.group, subject.flash)
            references = take_references(subject.engine, subject.prompts, subject.group, subject.flash)
            self._base = base = BaseEvaluation(self._key, pieces, references)

            def keep() -> None:
                write_base(self._path, base)
                write_base(self._cache, base)

            subject.group.from_first(keep)
        else:
            _LOG.info("The base model's evaluation is known (%s).", self._key[:12])
        return {name: losses.mean for name, losses in self._base.pieces.items()}

    def compare(
        self,
        state: TrainState,
        tuned: dict[str, PieceLosses],
        stores: Mapping[str, Store],
        tokenizer: TokenizerLike,
        mixing: Mixing,
        tasks: list[dict[str, Any]],
        recover: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> dict[str, Any] | None:
        """Write forgetting.json and return it; None when the base was never evaluated.

        Args:
            tasks: Scores of benchmark tasks on base and tuned model; none: those known of this checkpoint stay.
            recover: The recovery probe; called last, because it changes the weights.
        """
        subject, base = self._subject, self._base
        if base is None:
            _LOG.warning("No forgetting report: this run began before its base was evaluated.")
            return None
        divergences = divergence_by_piece(
            subject.engine, subject.prompts, base.references, subject.group, subject.flash
        )

        recovery = recover()

        def write() -> dict[str, Any]:
            record = {
                "version": VERSION,
                "run": self._facts(state),
                "sets": [
                    self._compare_set(
                        name, base.pieces[name], tuned[name], stores[name].validation, tokenizer
                    )
                    for name in tuned
                    if name in base.pieces
                ],
                "kl": [_divergence(name, *found) for name, found in divergences.items()],
                "tasks": tasks or self._known(state, "tasks") or [],
                "recovery": recovery or self._known(state, "recovery"),
                "replay": mixing.replay_facts(state),
            }
            write_atomic(self._run_dir / FILE_NAME, json.dumps(record, indent=2) + "\n")
            return record

        record: dict[str, Any] = subject.group.from_first(write)
        return record

    def _known(self, state: TrainState, key: str) -> Any:
        """Return what was measured of this checkpoint before and is not measured at every evaluation."""
        path = self._run_dir / FILE_NAME
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record.get(key) if record["run"]["tuned"] == self._label(state) else None

    def _label(self, state: TrainState) -> str:
        return step_dir(self._run_dir, state.step).name

    def _facts(self, state: TrainState) -> dict[str, Any]:
        quantise = self._config.tune.quantise
        return {
            "name": self._config.name,
            "base": self._base_name,
            "base_digest": self._base_digest,
            "tuned": self._label(state),
            "steps": state.step,
            "tokens_seen": state.tokens_seen,
            "device": describe_device(),
            "dtype": self._config.zero.dtype
            + ("" if quantise is Quantise.none else f", base in {quantise.value}"),
        }

    def _compare_set(
        self, name: str, base: PieceLosses, tuned: PieceLosses, split: SplitStore, tokenizer: TokenizerLike
    ) -> dict[str, Any]:
        compared: SetComparison = compare_set(
            name,
            self._config.data.sources[name].role.value,
            base.nll_P,
            tuned.nll_P,
            base.targets_P,
            _bytes_of_pieces(split, self._config.data.max_validation_packs, tokenizer),
        )
        return compared.to_plain()


def prompts_for_kl(
    config: RunConfig, stores: Mapping[str, Store], tokenizer: TokenizerLike, pad_id: int
) -> HeldOut:
    """Lay out the held-out text of the target sources and, for a chat model, the fixed conversations."""
    chosen: dict[str, Any] = {
        name: store.validation
        for name, store in stores.items()
        if config.data.sources[name].role is Role.target
    }
    if tokenizer.has_chat_template and CHAT not in chosen:
        chosen[CHAT] = ChatPrompts(tokenizer, config.data.seq_len)
    return HeldOut(
        names=list(chosen),
        stores=list(chosen.values()),
        max_packs=config.evaluate.kl_packs,
        micro_batch_size=1,
        pad_id=pad_id,
    )


def _divergence(name: str, sums: list[float], counts: list[int]) -> dict[str, Any]:
    found = mean_with_interval(name, np.array(sums), np.array(counts, dtype=np.int64))
    facts = dataclasses.asdict(found)
    facts["nats"] = facts.pop("mean")
    return {"prompts": name, **facts}


def _bytes_of_pieces(split: SplitStore, max_packs: int, tokenizer: TokenizerLike) -> npt.NDArray[np.int64]:
    """Return the UTF-8 bytes of the supervised text of each piece that has any."""
    found = []
    for index in range(min(split.num_packs, max_packs)):
        pack = split.pack(index)
        start = 0
        for length in pack.lengths:
            tokens = pack.tokens[start + 1 : start + length][pack.supervised[start + 1 : start + length]]
            if len(tokens):
                found.append(len(tokenizer.decode(tokens.tolist()).encode("utf-8")))
            start += length
    return np.array(found, dtype=np.int64)
