"""The reference of a loss without a second model: what the policy itself says of answers at the start of a run.

An adapter that begins fresh adds nothing there, and one that training goes on with belongs to the reference. The model
is asked once, by the same distributed forward pass that trains, and its answer is kept under everything that shapes it.
What is known is asked again about a sample at each start, and about everything where it is no longer true.

Collective: every rank calls everything here in the same order; rank 0 reads and writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.data.pack.collate import IGNORE
from trainer.data.pack.refs import FILLER, PackRef, read_batch, spread
from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore
from trainer.data.store.writer import cache_explained
from trainer.data.types import Float64s
from trainer.engine.policy import Policy
from trainer.model.tune.prompt import virtual_off
from trainer.teacher.answer_sums import (
    VERSION,
    AnswerPacks,
    AnswerSums,
    answer_sums_folder,
    read_sums,
    write_sums,
)
from trainer.teacher.showing import showing

_LOG = logging.getLogger(__name__)
NUM_SAMPLED = 8
"""Packs of each split that are asked about again at a start."""
MOST_APART = {"fp32": 1e-4, "bf16": 2e-2}
"""Nats a token, over the sample: an allowance, since micro-batches and ranks of another number may sum in another
order. On CPUs they did not: of a tiny random model (ZeRO-1 and 3, 1 to 4 packs at once) and of one with 9 million
weights (ZeRO-1, 1 to 8 packs) the sums of 52 answers were the same to the last bit on one and two ranks, in float32
and in bf16. On GPUs it was not measured. The same weights in the other of the two precisions were 1e-3 away."""


@dataclass(frozen=True, slots=True)
class AnswerQuestion:
    """Who is asked about which answers."""

    splits: Sequence[AnswerPacks]
    model: Mapping[str, object]
    """What shapes the model's answer: weights, adapter, kernels, attention, precision."""
    dtype: str
    micro_batch_size: int
    """Packs that a rank asks about at once."""
    pad_id: int
    what: str = "answers"
    """Whose sums these are, for what is said."""

    @property
    def described(self) -> dict[str, object]:
        """Return what the key of the sums is a digest of."""
        splits = [split.described for split in self.splits]
        return {"version": VERSION, "dtype": self.dtype, **self.model, "packs": splits}


def open_answer_sums(
    policy: Policy, question: AnswerQuestion, cache_dir: str, heed: Callable[[], None] = lambda: None
) -> list[AnswerSums]:
    """Return the sums of every split; ask for them when nobody has before, or when what is known is not true.

    The policy must be as training begins: call this before a checkpoint is loaded, resumed runs included.

    Args:
        heed: Called by every rank after each batch; may raise on all of them, to give up.
    Raises:
        DataError: The disk has no room, or rank 0 cannot write there.
    """
    described = question.described
    key = digest_of(described)
    folder = answer_sums_folder(Path(cache_dir)) / key
    num_answers = sum(split.num_answers for split in question.splits)
    sums_A = policy.mesh.from_first(lambda: _known(folder, num_answers))
    if sums_A is not None and not _is_true(policy, question, sums_A, folder, heed):
        sums_A = None
    if sums_A is None:
        _LOG.info(
            "Asking the model, as it is before the first step, about %d %s: it is their reference, kept in %s.",
            num_answers,
            question.what,
            folder,
        )
        with virtual_off(policy.module):
            sums_A = ask_sums(policy, question, [split.refs for split in question.splits], heed)
        with cache_explained(cache_dir, "the reference's log-probabilities"):
            policy.mesh.from_first(lambda: write_sums(folder, sums_A, described))
    ends = np.cumsum([split.num_answers for split in question.splits])[:-1]
    return [AnswerSums(*each) for each in zip(question.splits, np.split(sums_A, ends), strict=True)]


def _known(folder: Path, num_answers: int) -> Float64s | None:
    if not folder.exists():
        return None
    try:
        return read_sums(folder, num_answers)
    except (OSError, ValueError) as error:
        _LOG.warning("%s is damaged (%s): the reference is asked again.", folder, error)
        return None


def _is_true(
    policy: Policy, question: AnswerQuestion, sums_A: Float64s, folder: Path, heed: Callable[[], None]
) -> bool:
    """Ask again about a sample and compare. Collective: every rank."""
    known: list[Float64s] = []
    chosen: list[list[PackRef]] = []
    num_tokens = begin = 0
    for split in question.splits:
        mine = AnswerSums(split, sums_A[begin : begin + split.num_answers])
        begin += split.num_answers
        refs = split.refs
        at = np.unique(np.linspace(0, max(len(refs) - 1, 0), min(NUM_SAMPLED, len(refs))).astype(np.int64))
        chosen.append([refs[place] for place in at.tolist()])
        known.append(mine.of(chosen[-1]))
        num_tokens += sum(int(split.stores[ref.source].pack_targets[ref.pack]) for ref in chosen[-1])
    expected_A = np.concatenate(known)
    with virtual_off(policy.module):
        now_A = ask_sums(policy, question, chosen, heed)
    apart = float(np.abs(now_A - expected_A).sum()) / max(num_tokens, 1)
    most = MOST_APART[question.dtype]
    if apart <= most:
        _LOG.info(
            "What the reference says of %d %s is known (%s); asked again about %d of them it is %.1e nats a token "
            "away.",
            len(sums_A),
            question.what,
            folder.name[:12],
            len(expected_A),
            apart,
        )
        return True
    _LOG.warning(
        "%s is not what the model says before the first step: on %d %s it is %.1e nats a token away, and rounding "
        "is at most %.0e. The reference is asked again about all.",
        folder,
        len(expected_A),
        question.what,
        apart,
        most,
    )
    return False


def ask_sums(
    policy: Policy, question: AnswerQuestion, refs: Sequence[Sequence[PackRef]], heed: Callable[[], None]
) -> Float64s:
    """Return what the model as it is says of packs of every split, in their order, float64. Collective: every rank.

    Args:
        refs: Packs of each split of the question.
    """
    mesh = policy.mesh
    total = sum(map(len, refs))
    found: dict[tuple[int, int, int], Float64s] = {}
    done = 0
    with (
        showing(f"Likelihood of {question.what}", total, mesh.is_first) as show,
        policy.evaluating(),
    ):
        for number, (split, wanted) in enumerate(zip(question.splits, refs, strict=True)):
            for batch in spread(wanted, mesh.data, question.micro_batch_size):
                for ref, sums in _sums_of_batch(policy, split.stores, batch, question.pad_id):
                    found[number, ref.source, ref.pack] = sums
                done = min(done + question.micro_batch_size * mesh.data.size, total)
                show(done)
                heed()
    everything: dict[tuple[int, int, int], Float64s] = {}
    for part in mesh.gather(found):
        everything |= part
    in_order = [everything[number, ref.source, ref.pack] for number, one in enumerate(refs) for ref in one]
    return np.concatenate([np.empty(0), *in_order])


def _sums_of_batch(
    policy: Policy, stores: Sequence[SplitStore], batch: Sequence[PackRef], pad_id: int
) -> list[tuple[PackRef, Float64s]]:
    """Return the sums of the pieces of each pack of a batch, fillers apart."""
    micro = read_batch(stores, batch, pad_id)
    is_asked_N = micro.labels_BT.reshape(-1) != IGNORE
    segments_S = micro.segments_BT.reshape(-1)[is_asked_N]
    log_probs_S = policy.log_probs(micro).double().cpu().numpy()
    sums_G = np.bincount(segments_S, weights=log_probs_S, minlength=len(micro.units_S))
    pack_G = micro.cu_seq_lens[:-1] // micro.tokens_BT.shape[1]
    found = []
    for row, ref in enumerate(batch):
        if ref is not FILLER:
            pieces = sums_G[pack_G == row][: len(micro.lengths_B[row])]
            found.append((ref, pieces))
    return found
