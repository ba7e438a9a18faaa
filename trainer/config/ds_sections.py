"""What the keys of a DeepSpeed file mean in fields of this trainer. Pure."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.config.check_zero import DECIDED, IDLE, KINDS, TAKEN, TAKEN_BY_ZERO, fits
from trainer.config.rule import Problem, must, problem

AUTO = (None, "auto")
"""What HF Trainer and accelerate fill in from their own settings."""
_ZERO = "zero_optimization."
_TYPES: dict[str, type] = {
    "gradient_clipping": float,
    "train_micro_batch_size_per_gpu": int,
    f"{_ZERO}overlap_comm": bool,
}
"""Kinds of renamed keys; the others are counts."""
_REDUCE = {"bf16": "bf16", "bfp16": "bf16", "bfloat16": "bf16", "fp32": "fp32", "float32": "fp32"}
_SHAPES = {"warmuplr": "constant", "warmupdecaylr": "linear", "warmupcosinelr": "cosine"}
_ELSEWHERE = {
    "activation_checkpointing": "model.checkpoint_layers says which layers are recomputed",
    "torch_autocast": "zero.dtype says in what the run computes",
    "wandb": "log.wandb says it",
}
_OF_SCHEDULER = {
    "warmup_min_lr": "the warm-up begins at 0",
    "total_num_steps": "train.max_steps, max_epochs or max_tokens is the length of the run",
    "warmup_type": "the warm-up is linear",
    "warmup_min_ratio": "the warm-up begins at 0",
    "last_batch_iteration": "a run goes on from its checkpoint",
}


@dataclass(frozen=True, slots=True)
class PackCounts:
    """The batch as a DeepSpeed file counts it, in packs."""

    packs: int | None = None
    """train_batch_size: over all ranks."""
    accumulation: int | None = None
    """gradient_accumulation_steps."""


@dataclass(slots=True)
class Found:
    """What became of the keys of a file."""

    name: str
    """The file, for sentences."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of ours."""
    extra: dict[str, Any] = field(default_factory=dict)
    """For `zero.extra`."""
    open: list[str] = field(default_factory=list)
    """Keys that say auto."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Why a key is left out."""
    problems: list[Problem] = field(default_factory=list)
    batch: PackCounts = PackCounts()

    def refuse(self, key: str, rule: str, value: object, fix: str) -> None:
        """Note a value that cannot be taken."""
        shown = "nothing" if value is None else repr(value)
        rest = f"must have {key} as {rule}, but {self.name} has {shown} instead. {fix}"
        self.problems.append(problem("zero.ds_config", rest))

    def value(self, key: str, value: Any, kind: type) -> Any:
        """Return a value of a kind, None where it is auto or was refused; 5e8 is a whole number."""
        if value in AUTO:
            self.open.append(key)
            return None
        is_whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
        value = int(value) if kind is int and is_whole else value
        is_number = kind in (int, float)
        if not fits(value, kind) or (is_number and not 0 <= value < math.inf):
            rule = f"{KINDS[kind]}{' from 0 up' if is_number else ''} or auto"
            self.refuse(key, rule, value, "Mend it.")
            return None
        return value

    def section(self, key: str, value: Any) -> dict[str, Any]:
        """Return a section; empty where it is auto or was refused."""
        return self.value(key, value, dict) or {}


def read_sections(file: Mapping[str, Any], name: str) -> Found:
    """Return what the keys of a DeepSpeed file mean."""
    found = Found(name)
    for key, value in file.items():
        match key:
            case "zero_optimization":
                _read_zero(found, found.section(key, value))
            case "bf16" | "fp16" | "scheduler":
                pass  # below: they depend on others
            case "train_batch_size":
                found.batch = dataclasses.replace(found.batch, packs=found.value(key, value, int))
            case "gradient_accumulation_steps":
                found.batch = dataclasses.replace(found.batch, accumulation=found.value(key, value, int))
            case "communication_data_type":
                _read_reduction(found, key, value)
            case "expert_parallel":
                _read_experts(found, found.section(key, value))
            case "optimizer":
                _read_optimizer(found, found.section(key, value))
            case _:
                _read_one(found, "", key, value, TAKEN)
    _read_dtype(found, file)
    if "scheduler" in file:
        _read_scheduler(found, found.section("scheduler", file["scheduler"]))
    return found


def _read_one(found: Found, prefix: str, key: str, value: Any, taken: Mapping[str, type]) -> None:
    """Rename a key, hand it to DeepSpeed as it is, or leave it out and say why."""
    whole = f"{prefix}{key}"
    if whole in _ELSEWHERE or whole in IDLE:
        found.ignored[whole] = _ELSEWHERE.get(whole) or IDLE[whole]
    elif whole in DECIDED:
        number = found.value(whole, value, _TYPES.get(whole, int))
        if number is not None:
            found.values[DECIDED[whole]] = number
    elif key in taken:
        value = found.value(whole, value, taken[key])
        if value is not None:
            (found.extra.setdefault("zero_optimization", {}) if prefix else found.extra)[key] = value
    else:
        _read_unknown(found, whole)


def _read_unknown(found: Found, whole: str) -> None:
    """Refuse what looks like a typing error; leave out all else."""
    known = [*(f"{_ZERO}{name}" for name in TAKEN_BY_ZERO), *TAKEN, *DECIDED, *IDLE]
    near = difflib.get_close_matches(whole, known, n=1, cutoff=0.9)
    if near:
        found.refuse(whole, "a key of DeepSpeed's", "another word", f"Did you mean `{near[0]}`?")
    else:
        found.ignored[whole] = "it is no key of DeepSpeed's that takes effect here"


def _read_experts(found: Found, section: Mapping[str, Any]) -> None:
    size = found.value("expert_parallel.autoep_size", section.get("autoep_size", 1), int)
    if section.get("enabled") is True and size is not None:
        found.values["zero.expert_parallel"] = size
    for key in section.keys() - {"enabled", "autoep_size"}:
        found.ignored[f"expert_parallel.{key}"] = "layers of experts are set up by this trainer"


def _read_zero(found: Found, section: Mapping[str, Any]) -> None:
    for key, value in section.items():
        match key:
            case "stage":
                if value in AUTO:
                    found.open.append(f"{_ZERO}stage")
                elif isinstance(value, bool) or value not in (0, 1, 2, 3):
                    found.refuse(f"{_ZERO}stage", "0, 1, 2 or 3", value, "Name one of DeepSpeed's stages.")
                else:
                    found.values["zero.stage"] = int(value)
            case "offload_optimizer" | "offload_param":
                _read_offload(found, key, found.section(f"{_ZERO}{key}", value))
            case "cpu_offload" | "cpu_offload_param":
                if found.value(f"{_ZERO}{key}", value, bool):
                    found.values[DECIDED[f"{_ZERO}{key}"]] = "cpu"
            case _:
                _read_one(found, _ZERO, key, value, TAKEN_BY_ZERO)


def _read_offload(found: Found, key: str, section: Mapping[str, Any]) -> None:
    whole = f"{_ZERO}{key}"
    device = section.get("device", "auto" if section else None)
    if not section:
        return
    if device in AUTO:
        found.open.append(f"{whole}.device")
    elif device not in ("cpu", "none"):
        found.refuse(f"{whole}.device", "cpu or none", device, "Nothing is kept on NVMe here; set cpu.")
    else:
        found.values[f"zero.{key}"] = device
    rest = {name: value for name, value in section.items() if name != "device" and value not in AUTO}
    if device == "cpu":
        if rest:
            found.extra.setdefault("zero_optimization", {})[key] = rest
    else:
        found.ignored |= {f"{whole}.{name}": "nothing is offloaded" for name in rest}


def _read_reduction(found: Found, key: str, value: Any) -> None:
    if value in AUTO:
        found.open.append(key)
    elif isinstance(value, str) and value in _REDUCE:
        found.values["zero.reduce_dtype"] = _REDUCE[value]
    else:
        found.refuse(key, "bf16 or fp32", value, "Gradients in fp16 overflow; set bf16.")


def _read_dtype(found: Found, file: Mapping[str, Any]) -> None:
    """Take `zero.dtype` from the sections bf16 and fp16: both off means float32."""
    is_on: dict[str, bool] = {}
    for key in ("bf16", "fp16"):
        if key not in file:
            continue
        section = found.section(key, file[key])
        why = "only `enabled` is read: master weights are fp32, and there is no loss scale"
        found.ignored |= {f"{key}.{name}": why for name in section if name != "enabled"}
        if section:
            enabled = found.value(f"{key}.enabled", section.get("enabled"), bool)
            if enabled is not None:
                is_on[key] = enabled
    if is_on.get("fp16"):
        found.refuse("fp16.enabled", "false or auto", True, "There is no fp16 here; set bf16.enabled.")
    elif is_on.get("bf16"):
        found.values["zero.dtype"] = "bf16"
    elif is_on.get("bf16") is False and is_on.get("fp16", False) is False and not _is_auto(file, "fp16"):
        found.values["zero.dtype"] = "fp32"


def _is_auto(file: Mapping[str, Any], key: str) -> bool:
    section = file.get(key)
    return isinstance(section, Mapping) and section.get("enabled") == "auto"


def _read_optimizer(found: Found, section: Mapping[str, Any]) -> None:
    kind = section.get("type")
    if kind not in AUTO and str(kind).lower() not in ("adam", "adamw"):
        found.refuse("optimizer.type", "AdamW", kind, "There is no other here; leave the section out.")
        return
    for name, value in found.section("optimizer.params", section.get("params")).items():
        key = f"optimizer.params.{name}"
        match name:
            case "lr" | "eps" | "weight_decay":
                number = found.value(key, value, float)
                if number is not None:
                    found.values[f"optim.{name}"] = float(number)
            case "betas":
                if value in AUTO:
                    found.open.append(key)
                elif isinstance(value, list) and all(fits(beta, float) for beta in value):
                    found.values["optim.betas"] = [float(beta) for beta in value]
                else:
                    found.refuse(key, "two numbers or auto", value, "Mend it.")
            case "adam_w_mode" if value is False:
                found.refuse(key, "true", value, "Weight decay is AdamW's here.")
            case _:
                found.ignored[key] = "the optimizer is this trainer's"


def _read_scheduler(found: Found, section: Mapping[str, Any]) -> None:
    kind = section.get("type")
    if not section:
        return
    shape = _SHAPES.get(str(kind).lower())
    if shape is None:
        rule = "WarmupLR, WarmupDecayLR or WarmupCosineLR"
        found.refuse("scheduler.type", rule, kind, "See the group `schedule`; leave the section out.")
        return
    found.values["schedule.name"] = shape
    if shape == "linear":
        found.values["schedule.final_frac"] = 0.0
    given = found.section("scheduler.params", section.get("params"))
    # DeepSpeed's own default, which a file need not say.
    for name, value in {"warmup_type": "log", **given}.items():
        key = f"scheduler.params.{name}"
        if value in AUTO:
            found.open.append(key)
        elif name == "warmup_num_steps":
            steps = found.value(key, value, int)
            if steps is not None:
                found.values["schedule.warmup_steps"] = steps
        elif name == "cos_min_ratio":
            share = found.value(key, value, float)
            if share is not None:
                found.values["schedule.final_frac"] = float(share)
        elif name == "warmup_max_lr":
            _read_peak(found, key, value)
        elif (name, value) != ("warmup_type", "linear"):
            found.ignored[key] = _OF_SCHEDULER.get(name, "no schedule here has it")


def _read_peak(found: Found, key: str, value: Any) -> None:
    peak, said = found.value(key, value, float), found.values.get("optim.lr")
    if peak is None:
        return
    if said is not None and said != peak:
        found.refuse(key, f"the optimizer's lr, {said:g}", value, "Leave one out.")
    found.values["optim.lr"] = float(peak)


def batch_tokens(
    batch: PackCounts, micro: int, ranks: int, seq_len: int, is_said: bool
) -> int | Problem | None:
    """Return `train.global_batch_tokens`, or why it cannot be told.

    Args:
        ranks: 0 where nobody has said how many.
        is_said: The command line gives it, so that it need not be told.
    """
    if batch.packs is not None:
        if batch.accumulation is not None and ranks and batch.packs != micro * batch.accumulation * ranks:
            return must(
                "train_batch_size",
                f"micro batch x accumulation x ranks = {micro} x {batch.accumulation} x {ranks}",
                batch.packs,
                "Leave gradient_accumulation_steps out of the file of zero.ds_config, or say auto.",
            )
        return batch.packs * seq_len
    if batch.accumulation is None or is_said:
        return None
    if not ranks:
        return must(
            "cluster.ranks_per_node",
            f"said with gradient_accumulation_steps={batch.accumulation} in the file of zero.ds_config",
            0,
            "Set it, or train.global_batch_tokens: tokens of a step over all ranks.",
        )
    return micro * batch.accumulation * ranks * seq_len
