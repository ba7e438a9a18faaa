"""Rounds of answers in words."""

from __future__ import annotations

from trainer.config.many import many
from trainer.rounds.rounds import MadeRound


def told_round(made: MadeRound, seconds: float) -> str:
    """Return in words what was sampled, and which documents are learnt as the data has them."""
    told = f"the model answered {many(made.num_answers, 'prompt')} in {seconds:.1f} s"
    if made.num_answers:
        told += (
            f", in the mean with {made.num_tokens / made.num_answers:,.1f} tokens; {made.num_ended:,} answers ended by "
            "themselves"
        )
    if made.num_given:
        told += f"; {many(made.num_given, 'document')} of the round keep the answer of the data"
    if made.num_without:
        told += (
            f"; {many(made.num_without, 'document')} of the round have no prompt, or one without room for an answer, "
            "and are learnt as they are"
        )
    return f"{told}. Rounds are in rounds/, and their numbers in metrics.jsonl."
