"""What a run writes and says before its first step: what it will draw, what is off, and how long it will take."""

from __future__ import annotations

import logging

from rich.console import Console

from trainer.config.schema import RunKind
from trainer.config.snapshot import write_atomic, write_provenance
from trainer.evaluate.proofs.isolation import ForwardTime
from trainer.export.merge import CONFIG, describe_adapter
from trainer.metrics.device import describe_device
from trainer.metrics.outlook import Outlook
from trainer.mix.mixing import Mixing
from trainer.run.cadence import Cadence
from trainer.run.comparable import why_no_comparison, why_no_interval
from trainer.run.session import Session
from trainer.run.told_objective import told_objective

_LOG = logging.getLogger(__name__)

NO_REPLAY = (
    "This run continues pretraining without replay, which forgets most: add replay=general, or a source with "
    "role=replay."
)


def say_what_runs(session: Session, mixing: Mixing, base: str | None) -> None:
    """Write provenance.json and the adapter's description, and print what the run will draw; rank 0."""
    write_provenance(
        session.run_dir,
        data={name: store.digest for name, store in session.stores.items()},
        inputs={
            "data": {name: store.described for name, store in session.stores.items()},
            "tokenizer": session.tokenizer.digest,
            "base": base,
        },
        model=session.loaded.source,
        attention=session.loaded.attention.name,
        kernels=session.loaded.kernels,
        device=describe_device(),
    )
    if session.tuned.peft_config is not None:
        described = describe_adapter(session.tuned.peft_config, session.loaded.source)
        write_atomic(session.run_dir / CONFIG, described)
    Console().print(mixing.table())
    if (told := told_objective(session.config)) is not None:
        _LOG.info("%s", told)
    if session.config.kind is RunKind.continued_pretrain and not mixing.has_replay:
        _LOG.warning(NO_REPLAY)
    for why in (why_no_comparison, why_no_interval):
        if (said := why(session.config, session.stores)) is not None:
            _LOG.warning(said)


def say_how_long(session: Session, forward: ForwardTime, cadence: Cadence, step: int) -> None:
    """Say before the first step how long it will take, where that is long."""
    layers = session.config.model.checkpoint_layers or 0
    num_layers = max(getattr(session.loaded.model.config, "num_hidden_layers", 1), 1)
    packs = len(session.held_out().batches(session.mesh.data))
    outlook = Outlook(
        forward_s=forward.seconds,
        forward_tokens=forward.num_tokens,
        step_tokens=session.shape.packs_per_step * session.shape.seq_len // session.mesh.data.size,
        num_steps=cadence.num_steps - step,
        recomputed_share=1.0 if layers < 0 else min(layers / num_layers, 1.0),
        evaluation_tokens=packs * session.config.evaluate.micro_batch_size * session.shape.seq_len,
        num_evaluations=cadence.evaluations_from(step),
    )
    if outlook.sentence is not None:
        _LOG.info(outlook.sentence)
