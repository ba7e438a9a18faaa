"""Every experiment that ships trains: a tiny twin of its model, two steps as it says with data cut down."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.twins import layer_kinds, save_twin
from trainer.config.options import group_options, shipped_options

EXPERIMENTS = [name for name in group_options()["experiment"] if name != "none"]
BY_DEFAULT = ("gpt_oss_20b_lora", "gemma3_4b_lora")
"""A mixture with windows and without SDPA, and a folder that also sees."""
SEQ_LEN = 128
FEW = (
    f"data.seq_len={SEQ_LEN}",
    "data.validation_frac=0.25",
    "data.num_workers=1",
    f"train.global_batch_tokens={2 * SEQ_LEN}",
    "train.micro_batch_size=1",
    "train.max_steps=2",
    "zero.dtype=fp32",
    "evaluate.every_steps=0",
    "evaluate.forgetting=false",
    "evaluate.during.kl=false",
    "checkpoint.enabled=false",
    "log.progress=false",
    "cluster.num_nodes=1",
    "cluster.ranks_per_node=1",
)


def shape_of(name: str) -> dict[str, Any]:
    """Return the shape that ships of an experiment's model."""
    from trainer.forecast.config_json import shipped_shapes
    from trainer.model.embedded import EMBEDDED

    options = {one.word: one for one in shipped_options()}
    model = options[f"model={options[f'experiment={name}'].choices['model']}"]
    return shipped_shapes()[model.values.get("path") or model.values.get("model.path") or EMBEDDED]


def write_rows(path: Path, format_name: str, columns: Any, is_weighted: bool) -> None:
    """Write rows of a format, each of other words."""
    lines: list[dict[str, Any]] = []
    for index in range(24):
        said, more = (
            f"Question {index}: what is {index} and {index}?",
            f"It is {2 * index}. " * (1 + index % 3),
        )
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": said},
            {"role": "assistant", "content": more},
        ]
        if is_weighted:
            turns[1]["weight"] = 1 + index % 2
        rows: dict[str, dict[str, Any]] = {
            "chat": {"messages": turns},
            "completion": {columns.prompt: said, columns.completion: more},
            "preference": {columns.prompt: said, columns.chosen: more, columns.rejected: f"No. {more}"},
        }
        lines.append(rows.get(format_name, {"text": f"{said} {more}"}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def train_twin(mesh: Any, name: str, folder: str) -> dict[str, Any]:
    """Train a twin as its experiment says; return losses and what trains."""
    from transformers import AutoConfig

    from trainer.command.fitting import fitted_here
    from trainer.command.prepare import ensure_inputs
    from trainer.config.check import check_config
    from trainer.config.store import compose_config
    from trainer.model.experts import expert_tensors
    from trainer.model.tune.quantise import quantised_layers
    from trainer.run import training
    from trainer.run.packing import with_packing
    from trainer.run.session import open_session
    from trainer.run.sharing import with_sharing
    from trainer.runtime.signals import StopFlag

    base, run_dir = Path(folder) / "base", Path(folder) / "run"
    kinds = layer_kinds(save_twin(shape_of(name), base))
    words = [f"experiment={name}", *FEW, "model.kind=pretrained", f"model.path={base}", f"run_dir={run_dir}"]
    words.append(f"data.cache_dir={folder}/cache")
    for source, spec in compose_config(words).data.sources.items():
        file = Path(folder) / f"{source}.jsonl"
        write_rows(file, spec.format.value, spec.columns, "weighted" in name)
        at = f"data.sources.{source}"
        words += [f"{at}.path={file}", f"{at}.dataset=null", f"{at}.subset=null"]
    config = compose_config(words)
    check_config(config, 1)
    config = with_sharing(with_packing(fitted_here(config, 1)))
    ensure_inputs(config)
    run_dir.mkdir()
    with ExitStack() as stack:
        session = open_session(config, stack)
        ended = training._train(session, stack.enter_context(StopFlag()), stack).value
        model = session.policy.engine.module
        found = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        num_packed, num_experts = len(quantised_layers(model)), len(expert_tensors(model))
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "grad_norm" in row]
    return {
        "ended": ended,
        "losses": [step["loss"] for step in steps],
        "norms": [step["grad_norm"] for step in steps],
        "method": config.tune.method.value,
        "trained": [name for name, trains in found.items() if trains],
        "frozen": [name for name, trains in found.items() if not trains],
        "num_packed": num_packed,
        "wants_packed": config.tune.quantise.value != "none",
        "packing": config.data.packing.value,
        "has_experts": num_experts > 0,
        "keeps_kinds": kinds == layer_kinds(AutoConfig.for_model(**shape_of(name))),
    }


@pytest.mark.parametrize(
    "name",
    [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS],
)
def test_a_twin_of_an_experiment_trains_what_the_experiment_says(pool, tmp_path, name):
    if "qlora" in name:
        pytest.importorskip("bitsandbytes", reason="pip install 'palimpsest-trainer[qlora]'")
    (found,) = pool(1).run(train_twin, name=name, folder=str(tmp_path))
    assert found["ended"] == "finished" and len(found["losses"]) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in found["losses"]), found["losses"]
    assert all(math.isfinite(norm) and norm > 0 for norm in found["norms"]), found["norms"]
    match found["method"]:
        case "lora":
            added = [key for key in found["trained"] if ".lora_" not in key]
            assert len(found["trained"]) > len(added)
            assert all("score" in key for key in added) and bool(added) == ("reward" in name)
        case "freeze":
            assert all(".layers." in key for key in found["trained"])
            assert any("embed" in key for key in found["frozen"])
        case _:
            assert found["method"] == "full" and not found["frozen"]
    assert (found["num_packed"] > 0) == found["wants_packed"]
    assert found["keeps_kinds"]
    assert found["has_experts"] == any("expert" in key for key in shape_of(name))
    assert (found["packing"] == "none") == name.startswith("granite4_h")
