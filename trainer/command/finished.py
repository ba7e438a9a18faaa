"""What is said of a run that is finished when it is started again."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainer.checkpoint.layout import find_checkpoints
from trainer.config.check_export import exports_adapter
from trainer.config.schema import RunConfig
from trainer.config.snapshot import free_folder
from trainer.metrics.jsonl import has_numbers, read_events

LEDGER = "ledger.jsonl"


def finished_sentence(config: RunConfig) -> str | None:
    """Return that a run is finished, what it has and how to go on; None where something is left to train.

    Reads the ledger and names of checkpoints; a start without `checkpoint.resume` trains anew.
    """
    run_dir = Path(config.run_dir)
    events = [one for one in read_events(run_dir / LEDGER) if one["event"] in ("started", "stopped")]
    newest = next(iter(find_checkpoints(run_dir)), None)
    goes_on = config.checkpoint.resume and config.checkpoint.enabled
    if not (goes_on and newest and events and events[-1].get("reason") == "finished"):
        return None
    steps = int(events[-1]["step"])
    asked = [int(one["num_steps"]) for one in events if has_numbers(one, "num_steps")]
    place, other = shlex.quote(str(run_dir)), shlex.quote(str(free_folder(run_dir)))
    merged = ", written with export.merge=true" if exports_adapter(config) else ""
    return (
        f"{run_dir} is finished: {steps} of {asked[-1] if asked else steps} steps are trained, and {newest.name} is "
        "saved. No step is left: only the comparison with the base and the report are made again. To use it: "
        f"palimpsest export run_dir={place}. To train longer, give a run of its own (run_dir={other}) more steps, or "
        f"let it begin from the export{merged} (model.path={shlex.quote(str(run_dir / 'export'))})."
    )
