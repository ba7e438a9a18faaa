"""What a base model says of its name, licence and languages: its folder, or its page in the hub's cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.config.check_export import name_on_hub
from trainer.config.yaml_text import OF_A_CARD, plain

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_TEXTS = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3 community license", "llama3"),
    (r"llama 2 community license", "llama2"),
    (r"gemma terms of use", "gemma"),
    (r"\bmit license\b", "mit"),
)
"""How the texts of licences begin, and what the hub calls them."""
OTHER, UNKNOWN = "other", "unknown"


@dataclass(frozen=True, slots=True)
class BaseCard:
    """A base model as a model card names it."""

    name: str
    """For people: its name on the hub, or that of its folder."""
    hub_name: str | None
    license: str
    """As the hub calls it; `other` where that is not known."""
    license_name: str | None = None
    license_link: str | None = None
    said_by: str | None = None
    """The file that says the licence; None where none does."""
    languages: tuple[str, ...] = ()


def read_base_card(source: str, hub_name: str | None, is_online: bool = False) -> BaseCard:
    """Return what is known of a base.

    Args:
        source: Folder, or name on the hub.
        hub_name: Its name on the hub, if it is known.
        is_online: Ask the hub where the folder has no README.md; else only its cache.
    """
    folder = Path(source)
    name = hub_name or folder.name
    link = None if hub_name is None else f"https://huggingface.co/{hub_name}"
    page = folder / "README.md"
    if hub_name is not None and not page.is_file():
        page = _from_hub(hub_name, page.name, is_online) or page
    head = _front_matter(page)
    languages = tuple(str(one) for one in _listed(head.get("language")))
    if isinstance(head.get("license"), str):
        named = {key: str(head[key]) for key in ("license_name", "license_link") if head.get(key)}
        if named.get("license_link", "").startswith("LICENSE") and link:  # a file beside the base's card
            named["license_link"] = f"{link}/blob/main/{named['license_link']}"
        return BaseCard(name, hub_name, head["license"], **named, said_by="README.md", languages=languages)
    for path in sorted(folder.glob("LICENSE*")) if folder.is_dir() else ():
        found = _license_in(path)
        if found is not None:
            return BaseCard(name, hub_name, found, said_by=path.name, languages=languages)
    return BaseCard(name, hub_name, OTHER, UNKNOWN, link, languages=languages)


def _from_hub(name: str, file: str, is_online: bool) -> Path | None:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, local_files_only=not is_online))
    except Exception:  # of whatever kind: the card says that the licence is not known
        return None


def hub_name_of(source: str) -> str | None:
    """Return the name on the hub of a name, or of a folder of the hub's cache; None for another folder."""
    name = name_on_hub(source)
    return None if name == source and Path(source).exists() else name


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        found = _FRONT.match(path.read_text(encoding="utf-8-sig", errors="replace"))
        read = plain(found[1], OF_A_CARD) if found else None
    except (OSError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def _license_in(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:2000].lower()
    except OSError:
        return None
    return next((name for pattern, name in _TEXTS if re.search(pattern, text)), None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
