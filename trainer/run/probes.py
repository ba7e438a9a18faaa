"""Which probes a run is measured on beside what it holds out, and what they cost."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from trainer.config.many import many
from trainer.config.metric import is_task_metric
from trainer.config.train import EvaluateConfig, ProbeChoice
from trainer.evaluate.base import BaseIdentity
from trainer.evaluate.probe_cost import MOST_SHARE, share_of_run, share_shown
from trainer.evaluate.probe_packs import ProbePacks
from trainer.evaluate.probe_texts import (
    ProbeTexts,
    ProbeTokens,
    encode_texts,
    folder_texts,
    packaged_texts,
    trained_on,
)
from trainer.evaluate.probing import ProbeMeasurement, ProbeQuestion, layout
from trainer.evaluate.record import LeftOut
from trainer.run.cadence import best_rule, cadence_of
from trainer.run.session import Session

_LOG = logging.getLogger(__name__)
ALL_KINDS = "Kinds of text that nobody named"


def build_probes(session: Session, base: BaseIdentity, heed: Callable[[], None]) -> ProbeMeasurement | None:
    """Return what measures probes; None where none are asked for. Collective: every rank.

    Raises:
        DataError: The folder of evaluate.probe_dir, or a file in it, cannot be read.
    """
    options = session.config.evaluate
    if options.probes is ProbeChoice.none:
        return None
    texts: list[ProbeTexts] = session.mesh.from_first(lambda: _texts(options))
    probes, left_out = _encoded(session, texts)
    packs = ProbePacks(probes, session.config.data.seq_len)
    share = _share(session, packs.num_packs)
    is_during, during_share = False, 0.0
    if options.during.probes and (num_during := _num_during(session)):
        during_share = _share(session, packs.num_packs, num_during)
        is_during = options.probes is ProbeChoice.all or during_share <= MOST_SHARE
    if options.probes is ProbeChoice.auto and options.probe_dir is None and share > MOST_SHARE:
        why = (
            f"they would have taken {share_shown(share)} as long as the training of this short run, and "
            f"evaluate.probes=auto takes them up to {100 * MOST_SHARE:g} %. evaluate.probes=all measures them whatever "
            "they take."
        )
        packs, left_out = ProbePacks([], session.config.data.seq_len), [LeftOut(ALL_KINDS, why)]
    if session.mesh.is_first:
        _say(packs, left_out, share)
        _say_during(packs, is_during, during_share)
    held_out = layout(packs, options.micro_batch_size, session.pad_id)
    question = ProbeQuestion(
        session.policy, packs, dataclasses.replace(held_out, heed=heed), left_out, is_during
    )
    return ProbeMeasurement(session.run_dir, Path(session.config.data.cache_dir), question, base)


def _texts(options: EvaluateConfig) -> list[ProbeTexts]:
    own = [] if options.probe_dir is None else folder_texts(options.probe_dir)
    taken = {texts.kind for texts in own}
    return [*own, *(texts for texts in packaged_texts() if texts.kind not in taken)]


def _encoded(session: Session, texts: list[ProbeTexts]) -> tuple[list[ProbeTokens], list[LeftOut]]:
    """Encode what can be, without what is trained on."""
    probes: list[ProbeTokens] = []
    left_out: list[LeftOut] = []
    stores = list(session.stores.values())
    for one in texts:
        found = encode_texts(one, session.tokenizer)
        if isinstance(found, str):
            left_out.append(LeftOut(one.kind, f"not measured: {found.rstrip('.')}."))
        elif shared := trained_on(found, stores):
            why = (
                f"not measured: {shared} of its {many(len(found.tokens), 'document')} stand in what is trained on, and "
                "would say nothing of the others. Take them out of one of the two."
            )
            left_out.append(LeftOut(one.kind, why))
        else:
            probes.append(found)
    return probes, left_out


def _share(session: Session, num_packs: int, num_during: int = 0) -> float:
    """Return what reading the probes takes of the computation of the training."""
    return share_of_run(num_packs, session.mixing().num_steps * session.shape.packs_per_step, num_during)


def _num_during(session: Session) -> int:
    """Return the evaluations of the run between its first step and its last."""
    config = session.config
    best = None if is_task_metric(config.checkpoint.best.metric) else best_rule(config, None)
    return cadence_of(config, session.mixing().num_steps, best).evaluations_from(1) - 1


def _say_during(packs: ProbePacks, is_during: bool, share: float) -> None:
    if not (packs.num_packs and share):
        return
    if is_during:
        _LOG.info(
            "Probes are read at every evaluation too: %s in all (evaluate.during.probes).", share_shown(share)
        )
    else:
        _LOG.info(
            "Probes are read before the first step and after the last alone: at every evaluation it would be %s of "
            "the computation, and evaluate.probes=auto takes up to %g %%. evaluate.probes=all reads them in any case.",
            share_shown(share),
            100 * MOST_SHARE,
        )


def _say(packs: ProbePacks, left_out: list[LeftOut], share: float) -> None:
    if packs.num_packs:
        kinds = len(set(packs.kinds))
        _LOG.info(
            "Probes: %s of text, %s, %s of the computation of the training (evaluate.probes).",
            many(kinds, "kind"),
            many(packs.num_packs, "pack"),
            share_shown(share),
        )
    for one in left_out:
        _LOG.info("Probe left out: %s: %s", one.name, one.why)
