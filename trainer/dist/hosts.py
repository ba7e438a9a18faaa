"""SLURM's short form of node lists. Pure."""

from __future__ import annotations

import itertools
import re

from trainer.errors import TopologyError

_COMMA = re.compile(r",(?![^\[]*\])")
_HOST = re.compile(r"[A-Za-z0-9][\w.:@%-]*", re.ASCII)
"""What ssh and a shell take for a name, and never for an option or a command."""
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def expand_hosts(text: str) -> list[str]:
    """Return the names that `node[1-3,07],login` stands for, in order, as `scontrol show hostnames` does.

    Raises:
        TopologyError: Not a node list.
    """
    names: list[str] = []
    for part in filter(None, _COMMA.split(text.strip())):
        fixed = _BRACKETS.split(part)
        # Every second piece stood in brackets.
        choices = [_numbers(piece, text) if index % 2 else [piece] for index, piece in enumerate(fixed)]
        names += ["".join(pieces) for pieces in itertools.product(*choices)]
    if not names or any(set(name) & set("[] ") for name in names):
        raise _not_a_list(text)
    return names


def _numbers(text: str, whole: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()) or int(last) < int(first):
            raise _not_a_list(whole)
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _not_a_list(text: str) -> TopologyError:
    return TopologyError(
        f"`SLURM_JOB_NODELIST` must be a list of nodes such as node[1-4], but is '{text}' instead. Export "
        "MASTER_ADDR, the first node's address."
    )


def parse_hostfile(text: str, name: str) -> dict[str, int]:
    """Return ranks by host from DeepSpeed's `HOST slots=N` lines.

    Raises:
        TopologyError: A line that is not of that form, a host twice, no host, or different numbers of ranks.
    """
    hosts: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        slots = re.fullmatch(r"slots=([1-9]\d*)", words[1]) if len(words) == 2 else None
        slots = slots if _HOST.fullmatch(words[0]) else None
        if words[0] in hosts:
            problems.append(f"{name}:{number} names a host again")
        elif slots is None:
            problems.append(f"{name}:{number} is '{line.strip()}' instead")
        else:
            hosts[words[0]] = int(slots.group(1))
    if problems:
        raise TopologyError(
            f"`cluster.hostfile` must be lines of HOST slots=N, each host once, but {', '.join(problems)}. "
            f"Mend {'that line' if len(problems) == 1 else 'these lines'}."
        )
    if len(set(hosts.values())) != 1:
        found = ", ".join(f"{host} {slots}" for host, slots in hosts.items()) or "no host"
        raise TopologyError(
            f"`cluster.hostfile` must give every host the same number of slots, but {name} has {found} instead. "
            "Give each the ranks of the smallest."
        )
    return hosts
