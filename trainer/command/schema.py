"""`palimpsest schema [SECTION]`: the JSON schema of the configuration, for editors."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trainer.config.describe import find_sections, nearest_keys, schema_key, sections
from trainer.config.json_schema import json_schema
from trainer.errors import ConfigError


def schema_text(words: Sequence[str]) -> str:
    """Return the schema of the whole configuration, or of the one section that is named.

    Raises:
        ConfigError: There is no such section.
    """
    if len(words) > 1:
        raise ConfigError(
            f"`palimpsest schema` must be given one section or none, but is given {' '.join(words)} instead. Name one."
        )
    key = words[0] if words else ""
    if key and not find_sections(key):
        near = [name for name in nearest_keys(key) if find_sections(name)]
        meant = f" Did you mean `{near[0]}`?" if near else ""
        listed = ", ".join(section.key for section in sections() if section.key and "." not in section.key)
        raise ConfigError(
            f"`{key}` must be a section of the configuration, but is none instead.{meant} Sections: {listed}."
        )
    return json.dumps(json_schema(schema_key(key)), indent=2, ensure_ascii=False)
