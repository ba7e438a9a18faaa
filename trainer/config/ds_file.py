"""Another trainer's DeepSpeed file: its keys become fields of ours, and everything else is named with the reason.

The file is read once, when a configuration is composed. What it said is in the frozen configuration afterwards, and
the file is not needed again.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from trainer.config.check import refuse
from trainer.config.ds_sections import Found, PackCounts, batch_tokens, read_sections
from trainer.config.entry import key_of
from trainer.config.many import many
from trainer.config.rule import Problem, problem
from trainer.errors import ConfigError

KEY = "zero.ds_config"
_LOG = logging.getLogger(__name__)


def with_ds_file(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration with what its `zero.ds_config` says, and say what became of each key.

    The file is over groups and recipes; a word of the command line is over the file.

    Raises:
        ConfigError: The file cannot be read, or lists every value that cannot be taken.
    """
    name = OmegaConf.select(config, KEY)
    if name is None:
        return config
    path = Path(str(name)).expanduser()
    found = read_sections(_load(path), str(path))
    words = {key_of(word): word for word in overrides}
    values, kept = _by_rule(found, config, words)
    refuse([*found.problems, *_contradictions(found, config, words, path)])
    before = {key: OmegaConf.select(config, key) for key in values}
    extra = OmegaConf.merge(OmegaConf.create(found.extra), config.zero.extra)
    config = cast(
        DictConfig, OmegaConf.merge(config, *(_nested(key, value) for key, value in values.items()))
    )
    config.zero.extra = extra
    config.zero.ds_config = None
    taken = [_change(key, before[key], value) for key, value in values.items()]
    taken += [f"zero.extra.{key}" for key in _leaves(found.extra)]
    _say(_sentence(path, taken, kept, found))
    return config


def _load(path: Path) -> dict[str, Any]:
    fix = f"Set {KEY}=FILE, the file that --deepspeed or deepspeed_config names in another trainer."
    try:
        read = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"`{KEY}` must be a file that can be read, but {path} cannot: {why}. {fix}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"`{KEY}` must be a JSON file, but {path} is not: {error}. Mend it.") from error
    if not isinstance(read, dict):
        raise ConfigError(f"`{KEY}` must hold one JSON object, but {path} holds {str(read)[:40]!r}. {fix}")
    return read


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"it has the key {double} twice")
    return dict(pairs)


def _by_rule(found: Found, config: DictConfig, words: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return what is taken, and what a word of the command line keeps from being."""
    micro = found.values.get("train.micro_batch_size")
    if "train.micro_batch_size" in words or micro is None:
        micro = OmegaConf.select(config, "train.micro_batch_size")
    tokens = "train.global_batch_tokens"
    if found.batch != PackCounts():
        ranks = config.cluster.num_nodes * config.cluster.ranks_per_node
        given = batch_tokens(found.batch, micro, ranks, config.data.seq_len, tokens in words)
        if isinstance(given, Problem):
            found.problems.append(given)
        elif given is not None:
            found.values[tokens] = given
        elif found.batch.accumulation is not None:
            found.ignored["gradient_accumulation_steps"] = f"{words[tokens]} says it"
    kept = [
        f"{words[key]} of the command line and not {_shown(value)}"
        for key, value in found.values.items()
        if key in words and OmegaConf.select(config, key) != value
    ]
    return {key: value for key, value in found.values.items() if key not in words}, kept


def _contradictions(
    found: Found, config: DictConfig, words: Mapping[str, str], path: Path
) -> Iterator[Problem]:
    """Yield what the option of the group `zero` says otherwise, where a person chose one."""
    if "zero" not in words:
        return
    for key in ("zero.stage", "zero.offload_optimizer", "zero.offload_param"):
        chosen, value = OmegaConf.select(config, key), found.values.get(key)
        chosen = getattr(chosen, "value", chosen)
        if key not in words and None not in (chosen, value) and chosen != value:
            yield problem(
                "zero",
                f"must be left out with {KEY}, or say the same, but {words['zero']} has {key}={_shown(chosen)} and "
                f"{path} {_shown(value)} instead. Leave one out.",
            )


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)


def _change(key: str, before: Any, now: Any) -> str:
    before = getattr(before, "value", before)
    return f"{key}={_shown(now)}" + (f" (was {_shown(before)})" if before != now else "")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_shown(value)}"


def _shown(value: Any) -> str:
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return plain if isinstance(plain, str) else json.dumps(plain)


def _sentence(path: Path, taken: Sequence[str], kept: Sequence[str], found: Found) -> str:
    lines = [f"{KEY}={path}: {many(len(taken), 'value')} taken, {many(len(found.ignored), 'key')} left out."]
    lines += [f"  taken     {one}" for one in taken]
    lines += [f"  kept      {one}" for one in kept]
    if found.open:
        lines.append(f"  auto      as this trainer has it: {', '.join(found.open)}")
    lines += [f"  left out  {key}: {why}" for key, why in found.ignored.items()]
    return "\n".join(lines)


@functools.cache
def _say(text: str) -> None:
    """Say it once: the points of a sweep read the same file."""
    _LOG.warning("%s", text)
