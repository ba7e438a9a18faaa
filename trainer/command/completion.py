"""`palimpsest completion SHELL`: a script that completes commands, groups, their options, keys and words.

The script holds every word, so a Tab starts sh and awk and no Python. Hydra's own completion needs an application that
is `hydra.main` and loads hydra at every Tab; argcomplete and shtab complete the options of an argparse parser, and the
words here are none.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.command.usage import COMMANDS, SUBCOMMANDS
from trainer.config.describe import NAME, fields, sections
from trainer.config.options import group_options, shipped_options
from trainer.config.paths import PLACES
from trainer.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")
OPTIONS = (
    *(("--help", ""), ("--all", ""), ("--cfg", ""), ("--config", ""), ("--dry-run", "submit")),
    *(("-m", "train"), ("-m", "submit"), ("--dry-run", "train"), ("--site", "init")),
)
"""Options, and the command that each is of; none where it is of several."""
_CORE = Path(__file__).with_name("completion.sh")
_BASH = """\
# Completion of palimpsest for bash: source <(palimpsest completion bash)
_palimpsest() {{
    local line=${{COMP_LINE:0:COMP_POINT}} IFS=$'\\n' current prefix word
    current=${{line##*[[:space:]]}}
    prefix=
    # What bash takes for the end of a word stays in front of what is put there.
    [[ $COMP_WORDBREAKS == *=* && $current == *=* ]] && prefix=${{current%"${{current##*[=:]}}"}}
    COMPREPLY=()
    for word in $(sh -c {core} palimpsest {table} "$line"); do
        if [[ $word == $'\\t' ]]; then
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "${{current#*=}}")
            return
        fi
        [[ $word == *[=.] ]] && compopt -o nospace 2>/dev/null
        COMPREPLY+=("${{word#"$prefix"}}")
    done
}}
complete -F _palimpsest palimpsest
"""
_ZSH = """\
#compdef palimpsest
# Completion of palimpsest for zsh: palimpsest completion zsh > FOLDER/_palimpsest, a folder of $fpath
_palimpsest() {{
    local -a found
    found=("${{(@f)$(sh -c {core} palimpsest {table} "${{(j: :)words[1,CURRENT]}}")}}")
    if [[ $found[1] == $'\\t' ]]; then
        compset -P '*='
        _files
        return
    fi
    compadd -Q -S '' -- ${{(M)found:#*[=.]}}
    compadd -Q -- ${{found:#*[=.]}}
}}
if [[ $funcstack[1] == _palimpsest ]]; then _palimpsest "$@"; else compdef _palimpsest palimpsest; fi
"""
_FISH = """\
# Completion of palimpsest for fish: palimpsest completion fish > ~/.config/fish/completions/palimpsest.fish
function __palimpsest
    set -l line (commandline -cp)
    for word in (sh -c {core} palimpsest {table} "$line")
        if test "$word" = \\t
            set -l current (commandline -ct)
            set -l key (string replace -r '=.*' '=' -- $current)
            string match -q '*=*' -- $current; or set key ''
            for path in (__fish_complete_path (string replace -r '^[^=]*=' '' -- $current))
                echo $key$path
            end
        else
            echo $word
        end
    end
end
complete -c palimpsest -f -a '(__palimpsest)'
"""


def completion(words: Sequence[str]) -> str:
    """Return the script for the shell that is named.

    Raises:
        ConfigError: There is none for it.
    """
    shell = " ".join(words)
    table, core = "\n".join(_table()), _CORE.read_text(encoding="utf-8")
    match shell:
        case "bash":
            return _BASH.format(core=shlex.quote(core), table=shlex.quote(table))
        case "zsh":
            return _ZSH.format(core=shlex.quote(core), table=shlex.quote(table))
        case "fish":
            return _FISH.format(core=_for_fish(core), table=_for_fish(table))
        case _:
            raise ConfigError(
                f"`palimpsest completion` must be given {', '.join(SHELLS[:-1])} or {SHELLS[-1]}, but is given "
                f"{shell or 'nothing'} instead. Load it with: source <(palimpsest completion bash)"
            )


def _table() -> Iterator[str]:
    """Yield the words, behind a letter for what they are."""
    for command in COMMANDS:
        yield f"c\t{command}"
    for option, command in OPTIONS:
        yield f"o\t{option}\t{command}"
    for command, names in _second_words():
        for name in names:
            yield f"s\t{name}\t{command}"
    groups = group_options()
    for key in (*groups, *fields()):
        yield f"k\t{key}"
    for group, names in groups.items():
        for name in names:
            yield f"v\t{group}={name}"
    for key, field in fields().items():
        for choice in field.choices or (("true", "false") if field.hint is bool else ()):
            yield f"v\t{key}={choice}"
    for key in PLACES:
        yield f"f\t{key}"
    for mapping, given in _names().items():
        yield f"n\t{mapping}\t{' '.join(sorted(given))}"


def _second_words() -> Iterator[tuple[str, list[str]]]:
    yield from ((command, list(names)) for command, names in SUBCOMMANDS.items())
    yield "completion", list(SHELLS)
    yield "schema", [section.key for section in sections() if section.key and NAME not in section.key]
    yield "help", list(COMMANDS)


def _names() -> dict[str, set[str]]:
    """Return the names that files of the groups give to entries, by the mapping of these."""
    found: dict[str, set[str]] = defaultdict(set)
    for mapping in (key.partition(f".{NAME}")[0] for key in fields() if f".{NAME}." in key):
        found[mapping] |= {"target", "replay", "probe", "general"} if mapping == "gate.sets" else set()
        for option in shipped_options():
            inside = [
                key.removeprefix(f"{mapping}.") for key in option.values if key.startswith(f"{mapping}.")
            ]
            found[mapping] |= {key.partition(".")[0] for key in inside}
    return found


def _for_fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
