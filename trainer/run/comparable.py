"""Whether a run can be compared with its base at its end, told before its first step."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.data.formats.opened import AS_ONE
from trainer.data.store.store import Store
from trainer.report.verdict import no_interval


def why_no_comparison(config: RunConfig, stores: Mapping[str, Store]) -> str | None:
    """Say why a run will not be compared with its base, and what to do; None where it will be, or is not to be."""
    evaluate = config.evaluate
    if not evaluate.forgetting or evaluate.has_tasks or any(s.validation.num_packs for s in stores.values()):
        return None
    counts = {name: store.train.num_documents for name, store in stores.items()}
    held = ", ".join(f"{name} has {many(count, 'document')}" for name, count in counts.items())
    whole = [
        name
        for name, store in stores.items()
        if counts[name] == 1 and any(AS_ONE in note for note in store.meta["notes"])
    ]
    if not config.data.validation_frac:
        fix = "Set data.validation_frac=0.02."
    elif whole:
        fix = (
            f"A txt file is one document: split it with data.sources.{whole[0]}.txt_documents=paragraph (or line), or "
            "give more documents."
        )
    elif max(counts.values(), default=0) > 1:
        fix = "Give more documents, or raise data.validation_frac."
    else:
        fix = "Give more documents: a source of one holds none out."
    return (
        f"No comparison with the base at the end of this run: nothing is held out to measure it on ({held}; "
        f"data.validation_frac={config.data.validation_frac:g}). {fix}"
    )


def why_no_interval(config: RunConfig, stores: Mapping[str, Store]) -> str | None:
    """Say for which sets a run will give no interval, and what to change; None where each of them will have one."""
    held = {name: store.validation.num_documents for name, store in stores.items()}
    return (
        no_interval({name: count for name, count in held.items() if count})
        if config.evaluate.forgetting
        else None
    )
