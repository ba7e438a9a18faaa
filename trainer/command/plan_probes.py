"""What a plan says of probes: how many tokens are read, and what that takes of the run."""

from __future__ import annotations

import math

from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.train import ProbeChoice
from trainer.evaluate.probe_cost import MOST_SHARE, NUM_READ, packaged_tokens, share_of_run, share_shown


def probe_notes(config: RunConfig) -> list[str]:
    """Say what probes cost; nothing of a run that takes none."""
    evaluate, train = config.evaluate, config.train
    if not evaluate.forgetting or evaluate.probes is ProbeChoice.none:
        return []
    tokens = packaged_tokens()
    trained = train.max_tokens or (train.max_steps or 0) * train.global_batch_tokens
    own = f", and the files of {evaluate.probe_dir}," if evaluate.probe_dir else ""
    said = f"Probes: the kinds of text of the package, about {tokens:,} tokens{own} are read {NUM_READ} times"
    if not trained:
        return [
            f"{said}; where that is more than {MOST_SHARE:.0%} of the run, evaluate.probes=auto leaves them out."
        ]
    share = share_of_run(tokens, trained)
    is_left = evaluate.probes is ProbeChoice.auto and evaluate.probe_dir is None and share > MOST_SHARE
    verdict = f", too much for evaluate.probes=auto ({MOST_SHARE:.0%}): none is read" if is_left else ""
    return [
        f"{said}, {share_shown(share)} of the computation of the training{verdict}.{_during(config, tokens, trained)}"
    ]


def _during(config: RunConfig, tokens: int, trained: int) -> str:
    """Say what reading them at every evaluation takes, or that it is too much; empty where that is not asked for."""
    evaluate, train = config.evaluate, config.train
    steps = trained / train.global_batch_tokens
    num = math.ceil(steps / evaluate.every_steps) - 1 if evaluate.every_steps else 0
    is_all = evaluate.probes is ProbeChoice.all
    if not evaluate.during.probes or num < 1 or (share_of_run(tokens, trained) > MOST_SHARE and not is_all):
        return ""
    share = share_of_run(tokens, trained, num)
    at = f" With {many(num, 'evaluation')} between, {share_shown(share)}"
    if is_all or share <= MOST_SHARE:
        return f"{at} (evaluate.during.probes)."
    return f"{at}: too much for evaluate.probes=auto, which reads them at the ends alone."
