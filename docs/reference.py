"""Write the configuration reference in Markdown, from the source of trainer/config alone.

    python docs/reference.py > docs/configuration.md

The page is committed, so that it can be read without building anything and a change of a key shows in review; a test
holds it to the source. A key is a heading, so that it can be linked to and searched for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TYPES = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false", "Any": "anything"}
GROUPS = {
    "recipe": "the kind of run: learning rate, schedule, length",
    "model": "base model, attention, kernels, activation checkpointing",
    "data": "sources, cleaning, split, packing",
    "replay": "older data against forgetting: ratio, schedule, controller",
    "tune": "which parameters train",
    "objective": "what is minimised; `weighted`: rows and turns count by their `weight`",
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


@dataclass(frozen=True)
class Field:
    """A key as the source has it."""

    name: str
    annotation: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """A dataclass, or an enum whose fields are its members."""

    meaning: str
    fields: tuple[Field, ...]


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """Return the whole page."""
    rows = [
        f"| `{group}` | {GROUPS.get(group, '')} | {', '.join(options)} |"
        for group, options in groups().items()
    ]
    sections = Sections()
    return HEAD + "\n".join(rows) + "\n\n" + "\n".join(_section(sections, "RunConfig", "", "Run"))


def groups() -> dict[str, list[str]]:
    """Return the options of every group: those that the page describes first, in its order."""
    found = {
        folder.name: sorted({file.stem for file in folder.glob("*.yaml")} - {"none"})
        for folder in sorted((ROOT / "conf").iterdir())
        if folder.is_dir() and not folder.name.startswith("_")
    }
    return {
        name: found[name]
        for name in sorted(found, key=lambda name: (name not in GROUPS, [*GROUPS, name].index(name)))
    }


class Sections:
    """The classes of trainer/config by name; only those that a run reaches are looked at."""

    def __init__(self) -> None:
        """Parse all files."""
        files = sorted((ROOT / "trainer" / "config").glob("*.py"))
        bodies = [ast.parse(file.read_text(encoding="utf-8")).body for file in files]
        self._nodes = {node.name: node for body in bodies for node in body if isinstance(node, ast.ClassDef)}

    def find(self, name: str) -> Section | None:
        """Return a class; None where there is none of this name."""
        node = self._nodes.get(name)
        return Section(ast.get_docstring(node) or "", tuple(_fields(node))) if node else None


def _fields(node: ast.ClassDef) -> Iterator[Field]:
    for item, following in zip(node.body, [*node.body[1:], None], strict=True):
        text = following.value if isinstance(following, ast.Expr) else None
        is_said = isinstance(text, ast.Constant) and isinstance(text.value, str)
        meaning = " ".join(str(text.value).split()) if is_said else ""
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield Field(item.target.id, ast.unparse(item.annotation), _default(item.value), meaning)
        elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
            yield Field(item.targets[0].id, "", ast.literal_eval(item.value), meaning)


def _default(value: ast.expr | None) -> str:
    """Return a default as YAML has it; nothing where it is a section."""
    match value:
        case None:
            return ""
        case ast.Attribute(attr=name):
            return name
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Lambda(body=body))]):
            return _default(body)
        case ast.Call(keywords=[ast.keyword(arg="default_factory", value=ast.Name(id=made))]):
            return {"list": "[]", "dict": "{}"}.get(made, "")
        case ast.List(elts=items):
            return f"[{', '.join(map(_default, items))}]"
        case ast.Dict(keys=keys, values=values):
            pairs = zip((key for key in keys if key), values, strict=True)
            return f"{{{', '.join(f'{_default(k)}: {_default(v)}' for k, v in pairs)}}}"
        case ast.Name(id=name):
            return {"ALL_LINEAR": "all_linear"}[name]
    plain = ast.literal_eval(value)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    return ast.unparse(value).strip("'") or "''"


def _section(sections: Sections, name: str, prefix: str, title: str) -> Iterator[str]:
    """Yield the lines of a section: its own keys, then the sections below it."""
    section = sections.find(name)
    assert section is not None, f"trainer/config must have a class {name}"
    below = {field: _section_name(sections, field.annotation) for field in section.fields}
    yield f"## {title}\n\n{_paragraphs(section.meaning)}\n"
    for field, inner in below.items():
        if not inner:
            yield from _key(sections, field, prefix)
    for field, inner in below.items():
        if inner:
            is_mapping = field.annotation.startswith("dict")
            key = f"{prefix}{field.name}" + (".NAME" if is_mapping else "")
            yield from _section(sections, inner, f"{key}.", f"`{key}`")


def _section_name(sections: Sections, annotation: str) -> str:
    """Return the class of a field that is a section, or a mapping of sections; nothing for all else."""
    name = annotation.removeprefix("dict[str, ").removesuffix("]")
    return name if name.endswith(("Config", "Rule")) and sections.find(name) else ""


def _key(sections: Sections, field: Field, prefix: str) -> Iterator[str]:
    kind, enum = _kind(sections, field.annotation)
    yield f"### `{prefix}{field.name}`\n"
    yield f"{kind}; default `{field.default}`\n"
    if field.meaning:
        yield f"{field.meaning.replace('<', '&lt;')}\n"
    said = (
        [f"- `{member.default}`: {member.meaning}" for member in enum.fields if member.meaning]
        if enum
        else []
    )
    if said:
        yield "\n".join(said) + "\n"


def _kind(sections: Sections, annotation: str) -> tuple[str, Section | None]:
    """Return a type in words, and the enum that it is of."""
    bare = annotation.removesuffix(" | None")
    or_null = " or null" if bare != annotation else ""
    listed = re.fullmatch(r"(list|dict)\[(?:str, )?(\w+)\]", bare)
    inner = listed[2] if listed else bare
    enum = sections.find(inner)
    words = f"one of {', '.join(f'`{member.default}`' for member in enum.fields)}" if enum else TYPES[inner]
    if listed:
        words = f"{'list' if listed[1] == 'list' else 'mapping of names'} of {words}"
        words = words.replace(" of one of", " of")
    return words + or_null, enum


def _paragraphs(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text)


if __name__ == "__main__":
    main()
