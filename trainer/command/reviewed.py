"""Whether people looked at the sources that models wrote, before anything is learnt of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from rich.console import Console

from trainer.config.data import Role, SourceConfig
from trainer.config.many import many
from trainer.config.paths import is_address
from trainer.config.rule import Problem, problem
from trainer.config.schema import RunConfig
from trainer.data.rows.files import is_large_json, kind_of, list_files
from trainer.data.rows.verdicts import PROVENANCE, names_model, read_verdicts
from trainer.errors import DataError
from trainer.evaluate.wilson import wilson_interval
from trainer.runtime.say import say
from trainer.runtime.seal import file_digest
from trainer.sample.samples import META, SAMPLES

LOOK_ROWS = 100
"""Rows of each file that are looked through for a provenance."""


def check_reviewed(config: RunConfig) -> None:
    """Raise where a source that a model wrote may not be learnt, and say what people accepted of the others."""
    refuse_unreviewed(config)
    for name, source in config.data.sources.items():
        if source.role is not Role.probe and (line := _told(name, source)) is not None:
            say(Console(), line)


def refuse_unreviewed(config: RunConfig) -> None:
    """Raise where a source that a model wrote may not be learnt.

    Raises:
        DataError: Names the source, the key and the command.
    """
    for found in unreviewed(config).values():
        raise DataError(found.sentence)


def unreviewed(config: RunConfig) -> dict[str, Problem]:
    """Return the sources that a model wrote and that people have not accepted, with a problem that says so.

    What is only measured is not learnt. What `palimpsest replay generate` writes is what the base says anyway: it is
    rehearsed so that it does not change, and nobody has to agree with it.
    """
    found = {}
    for name, source in config.data.sources.items():
        if source.role is Role.probe or source.min_acceptance is None or not is_synthetic(name, source):
            continue
        why = _why_not(name, source, source.min_acceptance)
        if why is not None:
            found[name] = why
    return found


def is_synthetic(name: str, source: SourceConfig) -> bool:
    """Tell whether models wrote the rows of a source: it says so, or its first rows do."""
    if source.synthetic is not None:
        return source.synthetic
    return bool(_synthetic_files(name, source))


def _synthetic_files(name: str, source: SourceConfig) -> list[Path]:
    """Return the files that models wrote: all where the source says so."""
    files = _files(name, source)
    if source.synthetic:
        return files
    return [file for file in files if not _is_replay(file) and _has_provenance(source, file)]


def _files(name: str, source: SourceConfig) -> list[Path]:
    if source.path is None or is_address(source.path):
        return []
    try:
        return [file for file in list_files(name, source).files if isinstance(file, Path)]
    except DataError:
        return []  # told by whoever reads them


def _is_replay(file: Path) -> bool:
    return file.name == SAMPLES and (file.parent / META).is_file()


def _has_provenance(source: SourceConfig, file: Path) -> bool:
    if kind_of(file) not in ("jsonl", "json", "parquet", "arrow") or is_large_json(file):
        return False
    from trainer.data.formats.opened import open_file

    try:
        opened = open_file(source, file, kind_of(file))
        if opened.is_table and PROVENANCE not in opened.columns:
            return False
        rows = islice(opened.read([PROVENANCE], []), LOOK_ROWS)
        return any(names_model(row.get(PROVENANCE)) for _, row in rows)
    except (DataError, ImportError):
        return False  # a broken file is told by whoever reads it; one prepared elsewhere was looked at there


def _why_not(name: str, source: SourceConfig, bound: float) -> Problem | None:
    key, files = f"data.sources.{name}", _synthetic_files(name, source)
    none = f"set {key}.min_acceptance=null to take rows that nobody looked at."
    if not files:
        if source.path is not None and not is_address(source.path):
            return None  # the files that are not there are told elsewhere
        where = source.path or source.dataset
        return problem(
            key,
            f"must be looked at by people before it is learnt, as models wrote it, but {where} is not here, where "
            f"verdicts could lie beside it. Copy it here as a .jsonl file, or {none}",
        )
    accepted = judged = 0
    for file in files:
        verdicts = read_verdicts(file)
        fix = f"Run: palimpsest data review export {file}, then import the verdicts; or {none}"
        if verdicts is None or not verdicts.verdicts:
            return problem(
                key,
                f"must be looked at by people before it is learnt, as models wrote it ({key}.synthetic), but "
                f"{file.name} has no verdicts. {fix}",
            )
        if verdicts.sha256 != file_digest(file):
            return problem(
                key,
                f"must be what people looked at, but {file.name} has changed since its verdicts were given. {fix}",
            )
        of_file = verdicts.counted()
        accepted, judged = accepted + of_file[0], judged + of_file[1]
    low, high = wilson_interval(accepted, judged)
    if low >= bound:
        return None
    return problem(
        f"{key}.min_acceptance",
        f"must be reached by the lower end of the 95 % interval of what people accept, but is {bound:g}, and of "
        f"{many(judged, 'row')} {accepted} were accepted: {low:.3f} to {high:.3f}. Mend or filter the rows; look at "
        f"more of them (palimpsest data review export {files[0]} num={2 * max(judged, 50)}), or lower the bound; or "
        f"{none}",
    )


def _told(name: str, source: SourceConfig) -> str | None:
    """Return what is to be said of a source that models wrote and that may be learnt."""
    if not is_synthetic(name, source):
        return None
    if source.min_acceptance is None:
        return f"{name}: models wrote it, and it is taken without verdicts of people (min_acceptance=null)."
    counts = [found.counted() for file in _synthetic_files(name, source) if (found := read_verdicts(file))]
    accepted, judged = (sum(column) for column in zip(*counts, strict=True))
    low, high = wilson_interval(accepted, judged)
    return (
        f"{name}: models wrote it; of {many(judged, 'row')} people accepted {accepted} "
        f"(95 % interval {low:.3f} to {high:.3f})."
    )
