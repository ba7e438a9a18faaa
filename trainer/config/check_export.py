"""Rules of `export`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import PurePath

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.rule import Problem, must, problem
from trainer.config.schema import RunConfig
from trainer.config.train import ExportConfig, GgufType

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?(?<!\.git)", re.ASCII)
_IN_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+/?\Z", re.ASCII)
_BRANCH = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*", re.ASCII)


def export_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    export = config.export
    if not 0 <= export.alpha <= 1:
        yield must("export.alpha", "in [0, 1]", export.alpha, "Set 1 for the tuned model.")
    if export.dtype not in ("auto", "bfloat16", "float32"):
        yield must("export.dtype", "auto, bfloat16 or float32", export.dtype, "Set export.dtype=auto.")
    if export.gguf is not GgufType.none and export.interpolate is not None:
        yield must(
            "export.gguf",
            "none with export.interpolate, which writes no model",
            export.gguf.value,
            "Leave it out.",
        )
    is_adapter = exports_adapter(config)
    yield from _average_problems(config, is_adapter)
    if export.text_only and is_adapter:
        fix = "Set export.merge=true, or leave it out."
        yield must("export.text_only", "false for an adapter, which belongs to the whole base", True, fix)
    if export.merge and not export.adapters and config.tune.trains_weights:
        rule = (
            f"false with tune.method={config.tune.method.value}, which trains the weights and has no adapter"
        )
        yield must("export.merge", rule, True, "Leave it out: the whole model is exported.")
    yield from _combination_problems(export)
    yield from _hub_problems(export)
    if export.hub is not None and export.hub_base is None and export.interpolate is None and is_adapter:
        yield from _base_problems(config.model)


def _average_problems(config: RunConfig, is_adapter: bool) -> Iterator[Problem]:
    key, count = "export.average", config.export.average
    if count < 1:
        yield must(key, "1 (the named checkpoint alone) or more", count, f"Set {key}=1.")
    elif count > 1 and config.export.adapters:
        yield must(key, "1 with export.adapters, which are of several runs", count, f"Set {key}=1.")
    elif count > 1 and config.tune.is_virtual:
        fix = f"Set {key}=1. (They are no change of the weights, so that there is no whole model to average.)"
        yield must(key, f"1 with tune.method={config.tune.method.value}", count, fix)
    elif count > 1 and is_adapter and config.export.interpolate is None:
        rule = "1 for an adapter alone, since the mean of its factors is not that of their product"
        yield must(key, rule, count, "Set export.merge=true, which averages whole models, or leave it out.")


def exports_adapter(config: RunConfig) -> bool:
    """Tell whether what is exported of a run, or of several, is an adapter alone rather than a whole model."""
    export = config.export
    trains_beside = not config.tune.trains_weights or bool(export.adapters)
    return trains_beside and not export.merge and export.alpha == 1


def _base_problems(model: ModelConfig) -> Iterator[Problem]:
    """Yield a problem where others would not find the base of an adapter that is pushed."""
    is_named = bool(model.path) or model.kind is ModelKind.tiny  # without one another rule speaks
    if is_named and model.kind is not ModelKind.embedded and name_on_hub(model.path) is None:
        name = PurePath(model.path).name or model.kind.value
        yield problem(
            "export.hub_base",
            f"must be given where an adapter is pushed whose base is a folder ({name}), but is not. Set "
            "export.hub_base=ORG/NAME, where others find the base, or export.merge=true.",
        )


def _hub_problems(export: ExportConfig) -> Iterator[Problem]:
    for key, value in (("export.hub", export.hub), ("export.hub_base", export.hub_base)):
        if value is not None and not is_hub_name(value):
            yield must(
                key, "ORG/NAME", value, f"Set {key}=my-org/my-model, in letters, digits, '-', '_' and '.'."
            )
    if export.hub is None:
        if export.hub_revision is not None:
            yield must(
                "export.hub_revision", "left out without export.hub", export.hub_revision, "Leave it out."
            )
        return
    if export.hub_revision is not None and not _BRANCH.fullmatch(export.hub_revision):
        yield must(
            "export.hub_revision", "the name of a branch", export.hub_revision, "Leave it out for main."
        )
    if export.interpolate is not None:
        fix = "Leave it out; push the alpha you take."
        yield must("export.hub", "left out with export.interpolate, which writes no model", export.hub, fix)
    if not export.verify:
        yield must("export.verify", "true with export.hub", False, "Only what was verified is pushed.")


def is_hub_name(text: str) -> bool:
    """Tell whether a text can be the name of a repository on the hub."""
    return _HUB_NAME.fullmatch(text) is not None and "--" not in text and ".." not in text


def name_on_hub(path: str) -> str | None:
    """Return the name on the hub of a name, or of a folder of the hub's cache; None for another folder.

    A folder that is there counts as one by its path from the root, as a configuration has it.
    """
    cached = _IN_CACHE.search(path)
    if cached is not None:
        return "/".join(cached.groups())
    return path if is_hub_name(path) else None


def _combination_problems(export: ExportConfig) -> Iterator[Problem]:
    if not export.adapters:
        if export.weights:
            yield must("export.weights", "left out without export.adapters", export.weights, "Leave it out.")
        return
    if len(export.adapters) < 2:
        fix = "Name two or more; one alone: palimpsest export run_dir=RUN."
        yield must("export.adapters", "two or more", export.adapters, fix)
    if export.output_dir is None:
        yield must("export.output_dir", "given with export.adapters", None, "Set export.output_dir=FOLDER.")
    if export.weights and len(export.weights) != len(export.adapters):
        fix = "Give a number for each, or none for equal shares."
        yield must("export.weights", f"{len(export.adapters)} numbers", export.weights, fix)
    if not all(math.isfinite(weight) and weight for weight in export.weights):
        fix = "Give a number other than 0; a negative one takes an adapter away."
        yield must("export.weights", "finite and not 0", export.weights, fix)
    if not 0 < export.density <= 1:
        yield must("export.density", "in (0, 1]", export.density, "Set 0.5.")
    for key, is_set, value in (
        ("export.alpha", export.alpha != 1, export.alpha),
        ("export.interpolate", export.interpolate is not None, export.interpolate),
    ):
        if is_set:
            yield must(key, "left out with export.adapters", value, "Set export.weights instead.")
