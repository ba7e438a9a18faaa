"""What a command needs and this machine has not, all of it told at once, with the broken rules; loads no torch.

Each is independent of the others: whoever has mended one does not meet the next at the next start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from trainer.checkpoint.named import KEY, why_not_named
from trainer.command.model_rules import rules_of_named_model
from trainer.command.prepare import not_generated
from trainer.command.reviewed import unreviewed
from trainer.command.rules import asks_model, broken_rules
from trainer.command.teacher_rules import teacher_problems
from trainer.config.apart import inputs_of, why_no_cache, why_not_apart
from trainer.config.check_export import exports_adapter
from trainer.config.data import SourceConfig
from trainer.config.paths import is_address
from trainer.config.rule import Problem, problem, problems_shown, said, told_together
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path
from trainer.config.together import WrongWords
from trainer.config.train import ExportConfig
from trainer.config.tune import Quantise
from trainer.data.rows.files import is_large_json, list_files
from trainer.errors import ConfigError, TrainerError
from trainer.evaluate.probe_texts import folder_texts
from trainer.evaluate.prompt_file import read_prompt_file, read_prompts
from trainer.evaluate.refusal_phrases import read_phrases, refusals_key
from trainer.evaluate.tasks.known import harness_problems
from trainer.export.earlier import why_foreign
from trainer.export.gguf import find_converter
from trainer.export.push import login_problems
from trainer.forecast.config_json import meant
from trainer.metrics.trackers import tracker_problems
from trainer.model.base_folder import ADAPTER, Needs
from trainer.model.on_disk import model_problems, no_maker, why_no_tokenizer
from trainer.model.tune.quantiser import quantiser_problems
from trainer.runtime.disk import why_not_writable
from trainer.start.accelerator import accelerator_problems

READ_BASE = ("prepare", "plan data", "train", "evaluate", "export", "replay generate")
"""Commands that read the tokenizer of the base, beside those that make rows."""


def refuse_missing(
    config: RunConfig, command: str, world_size: int | None = None, more: Sequence[Problem] = ()
) -> None:
    """Raise one error that lists every broken rule and everything that is not here.

    Args:
        world_size: Ranks of the run where they are known.
        more: What else was found to be wrong, which is told first.
    Raises:
        ConfigError: A single thing that is missing speaks for itself.
    """
    rules = broken_rules(config, command, world_size)
    broken = {rule.key for rule in (*more, *rules)}
    absent = [one.sentence for one in missing(config, command) if one.key not in broken]
    told = [one.sentence for one in (*more, *rules)] + absent
    if rules:
        raise ConfigError(problems_shown(told))
    if told:
        raise told_together(told)


def with_other_problems(error: WrongWords, command: str) -> ConfigError:
    """Return the error of words that cannot be composed together with what else is wrong, or is not here.

    What is not given yet is left for the next time: who mistyped a word may not have come to it.
    """
    if not isinstance(error.rest, RunConfig):
        return error
    rules = [rule for rule in broken_rules(error.rest, command) if not rule.is_open]
    broken = {rule.key for rule in rules}
    absent = [one for one in missing(error.rest, command) if one.key not in broken]
    others = [one.sentence for one in (*rules, *absent) if not error.may_have_led_to(one)]
    return told_together([*error.sentences, *others])


def missing(config: RunConfig, command: str) -> list[Problem]:
    """Return what the command needs and is not on this machine."""
    found = _missing_models(config, command)
    if command in ("train", "evaluate", "plan data") and config.evaluate.probe_dir is not None:
        found += _raised("evaluate.probe_dir", partial(folder_texts, config.evaluate.probe_dir))
    if command in ("train", "evaluate", "replay generate"):
        found += accelerator_problems(os.environ, is_here=config.cluster.hostfile is None)
    match command:
        case "prepare" | "plan data":
            found += [*source_problems(config), *cache_problems(config)]
        case "train":
            found += [
                *source_problems(config),
                *_prompt_problems(config),
                *_package_problems(config, command),
            ]
            found += [*tracker_problems(config.log, Path(config.run_dir), config.cluster.environment)]
            found += [*folder_problems("run_dir", config.run_dir), *cache_problems(config)]
        case "evaluate":
            found += [*source_problems(config), *_package_problems(config, command)]
            found += [*_checkpoint_problems(config, "evaluate.checkpoint", config.evaluate.checkpoint)]
            found += [*folder_problems("run_dir", config.run_dir), *cache_problems(config)]
        case "export":
            found += [*_export_problems(config)]
        case "replay generate":
            target = config.replay.generate.output_dir
            found += [*folder_problems("replay.generate.output_dir", target), *cache_problems(config)]
            if target and not os.path.exists(target):  # one that is there holds samples, or is refused
                found += [*_apart_problems("replay.generate.output_dir", target, config)]
        case _ if command.startswith("data ") and asks_model(config, command):
            found += [*cache_problems(config)]
    return list(dict.fromkeys(found))


def _missing_models(config: RunConfig, command: str) -> list[Problem]:
    """Return what is wrong with the model that the command asks, and with its teacher."""
    found: list[Problem] = []
    if asks_model(config, command):
        found += model_problems(config.model, needs_of(config, command))
    if command in ("prepare", "train", "plan data") and not found:
        found += rules_of_named_model(config)
    if command == "train":
        found += teacher_problems(config, Needs())
    return found


def needs_of(config: RunConfig, command: str) -> Needs:
    """Return what a command reads of the base beside its config.json."""
    makes_rows = command.startswith("data ")
    if not makes_rows and command not in READ_BASE:
        return Needs(tokenizer=False, weights=False)
    return Needs(weights=command != "prepare")  # an export compares the base with that of the training


def source_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem for every source whose files, or whose tokenizer, are not there or cannot be taken."""
    to_sample, to_review = not_generated(config), unreviewed(config)
    for name, source in config.data.sources.items():
        key = f"data.sources.{name}"
        if name in to_sample:
            yield to_sample[name]
        elif source.path is not None and not is_address(source.path):
            yield from _raised(key, partial(_look_at_rows, config, name, source))
        if name in to_review:
            yield to_review[name]
        if source.tokenizer is not None and source.tokenizer not in (
            config.model.tokenizer,
            config.model.path,
        ):
            why = why_no_tokenizer(source.tokenizer)
            if why is not None:
                yield problem(f"{key}.tokenizer", no_maker(source.tokenizer, why))


def _look_at_rows(config: RunConfig, name: str, source: SourceConfig) -> None:
    """Raise where a source has no files, or its first rows are not as it says."""
    listing = list_files(name, source)
    if any(is_large_json(file) for file in listing.files):
        return  # which is read whole to see one row of it
    try:
        from trainer.data.rows.source import read_files
    except ImportError:
        return  # prepared elsewhere: pyarrow is not installed where it is only trained
    read_files(name, source, listing, config.data.values).look()


def _prompt_problems(config: RunConfig) -> Iterator[Problem]:
    yield from _raised("evaluate.during.samples.file", lambda: read_prompts(config.evaluate.during.samples))
    refusals = config.evaluate.asked.refusals
    for task, file in refusals.files.items():
        key, as_chat = refusals_key(task), refusals.apply_chat_template
        yield from _raised(key, partial(read_prompt_file, key, file, as_chat))
    yield from _raised("evaluate.asked.refusals.phrases", lambda: read_phrases(refusals.phrases))


def _package_problems(config: RunConfig, command: str) -> Iterator[Problem]:
    """Yield a problem for every package that is asked for and not installed."""
    if config.tune.quantise is not Quantise.none:
        yield from quantiser_problems()
    evaluate, own = config.evaluate, config.evaluate.tasks.include_path
    yield from harness_problems("evaluate.tasks.names", evaluate.tasks.names, own)
    if command == "train":
        yield from harness_problems("evaluate.during.tasks", evaluate.during.tasks, own)


def _checkpoint_problems(config: RunConfig, key: str, which: str) -> Iterator[Problem]:
    """Yield a problem where a checkpoint is named that is not there; one that is there is verified once, later."""
    if config.export.adapters and key == KEY:
        yield from _adapter_problems(config.export)
    elif which != "base" and (why := why_not_named(Path(config.run_dir), which, key)):
        yield said(key, why)


def _adapter_problems(export: ExportConfig) -> Iterator[Problem]:
    """Yield a problem for everything that is to be combined and is neither a run with a checkpoint nor an adapter."""
    for name in export.adapters:
        folder = Path(name)
        if config_path(folder).exists():
            if why := why_not_named(folder, export.checkpoint):
                yield said(KEY, why)
        elif not (folder / ADAPTER).is_file():
            near = "" if folder.exists() else meant(name)
            has = f"has no {ADAPTER}" if folder.exists() else "is not there"
            yield problem(
                "export.adapters",
                f"must name runs or folders of an adapter, but {name} {has}.{near} Mend the path.",
            )


def _export_problems(config: RunConfig) -> Iterator[Problem]:
    export = config.export
    yield from _checkpoint_problems(config, KEY, export.checkpoint)
    if export.interpolate is None:
        yield from _place_problems(config, export.output_dir or str(Path(config.run_dir) / "export"))
    yield from login_problems(export)
    yield from _raised("export.gguf", lambda: find_converter(export, exports_adapter(config)))


def _place_problems(config: RunConfig, output_dir: str) -> Iterator[Problem]:
    """Yield a problem where an export cannot be written to a folder, or would destroy what is there."""
    key = "export.output_dir"
    found = [*folder_problems(key, output_dir), *_apart_problems(key, output_dir, config)]
    if not found and (why := why_foreign(Path(output_dir))):
        found = [said(key, why)]
    yield from found


def folder_problems(key: str, folder: str | None) -> Iterator[Problem]:
    """Yield a problem where nothing can be written into a folder."""
    why = None if not folder else why_not_writable(Path(folder).expanduser().absolute())
    if why is not None:
        yield problem(key, f"must be a folder you can write to, but {folder} is not: {why}. Set {key}.")


def _apart_problems(key: str, place: str | Path, config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where a place would be written into what the configuration reads."""
    why = why_not_apart(place, inputs_of(config))
    if why is not None:
        yield problem(
            key, f"must be a folder that nothing is read from, but {place} {why} instead. Set {key}."
        )


def cache_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where there can be no cache; one that is only read may hold everything already."""
    why = why_no_cache(config)
    if why is not None:
        yield problem(
            "data.cache_dir",
            f"must be a folder that nothing is read from, but {config.data.cache_dir} {why} instead. Set "
            "data.cache_dir.",
        )
    elif not Path(config.data.cache_dir).is_dir():
        yield from folder_problems("data.cache_dir", config.data.cache_dir)


def _raised(key: str, look: Callable[[], object]) -> Iterator[Problem]:
    """Yield what a look raises as a problem: of the key that its sentence begins with, else of this one."""
    try:
        look()
    except TrainerError as error:
        yield said(key, str(error))
