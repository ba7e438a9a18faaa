"""Is a file of a model in the cache of the Hugging Face hub, and does the hub have it? Asked once, without patience."""

from __future__ import annotations

import functools
from pathlib import Path


def in_cache(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return a file of a model in the cache; None where it is not there, or the hub has no such names."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


@functools.cache
def why_not_on_hub(
    name: str, file: str, revision: str | None = None, may_lack_it: bool = False
) -> str | None:
    """Return why a file of a model cannot be had from the hub; None where it can.

    One request a process: a download tries for half a minute where there is no network.

    Args:
        may_lack_it: It is enough that the hub has the model.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub import errors as of_hub

    if constants.HF_HUB_OFFLINE:
        return "the hub cannot be reached (HF_HUB_OFFLINE=1 forbids it)"
    try:
        get_hf_file_metadata(hf_hub_url(name, file, revision=revision))
    except of_hub.HFValidationError:
        return "the hub takes no such name (ORG/NAME)"
    except of_hub.GatedRepoError:
        return "the hub gives it only to who has accepted its terms there (hf auth login, or HF_TOKEN)"
    except of_hub.RepositoryNotFoundError:
        return "the hub has no such model, or does not show it to you (hf auth login, or HF_TOKEN)"
    except of_hub.RevisionNotFoundError:
        return f"the hub has no revision '{revision}' of it"
    except of_hub.EntryNotFoundError:
        return None if may_lack_it else f"the hub has no {file} in it"
    except Exception as error:  # the client, what is below it and its proxies raise their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the hub cannot be reached ({first.rstrip('.')[:120]})"
    return None
