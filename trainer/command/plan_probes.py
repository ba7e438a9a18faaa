"""What a plan says of probes: how many tokens are read, and what that takes of the run."""

from __future__ import annotations

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
    return [f"{said}, {share_shown(share)} of the computation of the training{verdict}."]
