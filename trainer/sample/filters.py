"""Which samples are dropped, and why. Pure functions of one sample; duplicates are found where all are seen."""

from __future__ import annotations

import hashlib
import unicodedata
import zlib
from collections.abc import Sequence, Set

from trainer.config.generate import GenerateConfig

NGRAM = 4
REPLACEMENT = "\ufffd"

TOO_SHORT = "too short"
NOT_ENDED = "not ended"
SPECIAL = "special tokens inside"
UNDECODABLE = "not decodable"
REPEATED = "repeats n-grams"
RUN = "repeats one token"
COMPRESSIBLE = "compresses too well"
DUPLICATE = "duplicate"
REASONS = (TOO_SHORT, NOT_ENDED, SPECIAL, UNDECODABLE, REPEATED, RUN, COMPRESSIBLE, DUPLICATE)


def find_fault(
    turns: Sequence[Sequence[int]],
    texts: Sequence[str],
    must_end: bool,
    has_ended: bool,
    special_ids: Set[int],
    limits: GenerateConfig,
) -> str | None:
    """Return the first reason to drop a sample, or None. The order is that of REASONS.

    Args:
        turns: Token ids of each turn without end marks; a text has one turn.
        texts: The same turns decoded.
        must_end: A sample that the length limit cut is dropped (chats; texts may be cut).
    """
    num_tokens = sum(len(turn) for turn in turns)
    if num_tokens < limits.min_new_tokens or not all(text.strip() for text in texts):
        return TOO_SHORT
    if must_end and not has_ended:
        return NOT_ENDED
    if any(token in special_ids for turn in turns for token in turn):
        return SPECIAL
    if max(map(replacement_share, texts)) > limits.max_replacement:
        return UNDECODABLE
    if max(map(repeated_share, turns)) > limits.max_repeated_ngrams:
        return REPEATED
    if max(map(longest_run, turns)) > limits.max_run_tokens:
        return RUN
    if max(map(compression, texts)) > limits.max_compression:
        return COMPRESSIBLE
    return None


def repeated_share(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Return the share of token n-grams that stood in the turn before."""
    total = len(tokens) - n + 1
    if total < 1:
        return 0.0
    return 1.0 - len({tuple(tokens[i : i + n]) for i in range(total)}) / total


def longest_run(tokens: Sequence[int]) -> int:
    """Return how often one token follows itself at most, itself included."""
    longest = run = 0
    previous: int | None = None
    for token in tokens:
        run = run + 1 if token == previous else 1
        longest = max(longest, run)
        previous = token
    return longest


def compression(text: str) -> float:
    """Return by which factor zlib makes a text smaller; below 1 for short ones."""
    raw = text.encode("utf-8", errors="surrogatepass")
    return len(raw) / len(zlib.compress(raw, 6))


def replacement_share(text: str) -> float:
    """Return the share of characters that stand for bytes which are not UTF-8."""
    return text.count(REPLACEMENT) / len(text) if text else 0.0


def without_cut_character(text: str) -> str:
    """Return a text that the length limit cut without the half character at its end."""
    return text.rstrip(REPLACEMENT)


def fingerprint(texts: Sequence[str]) -> str:
    """Return a digest that duplicates share, whatever their case, white space and Unicode form."""
    plain = [" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts]
    joined = "\x00".join(plain).encode("utf-8", errors="surrogatepass")
    return hashlib.sha256(joined).hexdigest()[:32]
