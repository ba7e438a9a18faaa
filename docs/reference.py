"""Write the configuration reference in Markdown, from the docstrings of trainer/config.

    python docs/reference.py > docs/configuration.md

The page is committed, so that it can be read without building anything and a change of a key shows in review; a test
holds it to the source. A key is a heading, so that it can be linked to and searched for.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.describe import KeyField, Section, sections
from trainer.config.options import group_options

GROUPS = {
    "recipe": "the kind of run: learning rate, schedule, length",
    "model": "base model, attention, kernels, activation checkpointing",
    "data": "sources, cleaning, split, packing",
    "replay": "older data against forgetting: ratio, schedule, controller",
    "tune": "which parameters train",
    "objective": "what is minimised: cross-entropy, by `weight`, of preferences, or a score (docs/objectives.md)",
    "optim": "AdamW",
    "schedule": "learning rate over the run",
    "zero": "DeepSpeed ZeRO; `zero.extra` takes the keys of DeepSpeed that take effect here and that no field decides; "
    "merged last",
    "checkpoint": "when to save, what to keep",
    "log": "console, metrics.jsonl, trackers",
    "gate": "what a tuned model may lose and must gain: `evaluate gate=default`, `export gate=default`",
    "cluster": "nodes, launcher, site, container, time limit",
    "experiment": "whole runs",
    "debug": "small variations for finding faults",
}
HEAD = """# Configuration reference

```
palimpsest train recipe=lora model=llama3_1_8b_instruct data=chat data.sources.chat.path=chats.jsonl optim.lr=2e-4 --cfg
```

`group=option` takes a file of `conf/`, `section.key=value` sets one key, and the command line wins; `--cfg` prints what
comes out. This page is written from the source by `docs/reference.py`.

## Groups

| group | what it decides | options |
|---|---|---|
"""


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """Return the whole page."""
    rows = [
        f"| `{group}` | {GROUPS.get(group, '')} | {', '.join(names)} |" for group, names in groups().items()
    ]
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(line for one in sections() for line in _section(one))


def groups() -> dict[str, list[str]]:
    """Return the options of every group: those that the page describes first, in its order."""
    found = group_options()
    ordered = sorted(found, key=lambda name: (name not in GROUPS, [*GROUPS, name].index(name)))
    return {name: [option for option in found[name] if option != "none"] for name in ordered}


def _section(section: Section) -> Iterator[str]:
    yield f"## {f'`{section.key}`' if section.key else 'Run'}\n\n{_plain(section.meaning)}\n"
    for field in section.fields:
        yield from _key(field)


def _key(field: KeyField) -> Iterator[str]:
    unit = f" ({field.unit})" if field.unit else ""
    yield f"### `{field.key}`\n"
    yield f"{field.kind}{unit}; default `{field.default_text}`\n"
    if field.meaning:
        yield f"{_plain(field.meaning)}\n"
    said = [f"- `{word}`: {_plain(meaning)}" for word, meaning in field.choices.items() if meaning]
    if said:
        yield "\n".join(said) + "\n"


def _plain(text: str) -> str:
    return text.replace("<", "&lt;")


if __name__ == "__main__":
    main()
