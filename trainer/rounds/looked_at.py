"""The rounds of a run as they are on disk, held against its ledger and its newest checkpoint. No model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.config.many import many
from trainer.errors import CheckpointError
from trainer.mix.loader import chain_digest
from trainer.rounds.kept_round import read_round


def look_at_rounds(
    run_dir: Path, newest: Mapping[str, Any], events: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[str, bool]:
    """Return what is said of the rounds that a checkpoint learnt from, and whether all are those that were sampled.

    Args:
        newest: The round of a state.
        events: Of the ledger; the last word on a round is that of the attempt that stayed.
        names: Of the sources, in their order.
    """
    said = {int(one["number"]): str(one["digest"]) for one in events if one.get("event") == "sampled"}
    chain, num_answers, num_tokens = "", 0, 0
    for number in range(int(newest["number"]) + 1):
        if number not in said:
            return f"the ledger knows no round {number}, which the newest checkpoint learnt from", False
        try:
            record = read_round(run_dir, number, names, said[number])
        except CheckpointError as error:
            return str(error), False
        chain = chain_digest(chain, said[number])
        num_answers += len(record.answers)
        num_tokens += record.num_tokens
    if chain != newest["chain"]:
        return "the ledger's rounds are not those that the newest checkpoint learnt from", False
    rounds = many(int(newest["number"]) + 1, "round")
    return (
        f"{many(num_answers, 'answer')} of {num_tokens:,} tokens in {rounds}: as sampled. What sampled them, weights "
        "that later steps moved, is not worked out again",
        True,
    )
