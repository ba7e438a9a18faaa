"""Rounds on disk: read as they were written, refused when they were not, and held against the ledger."""

import pytest

from trainer.errors import CheckpointError
from trainer.mix.loader import chain_digest
from trainer.rounds.asked_pieces import PiecePlace
from trainer.rounds.kept_round import RoundRecord, read_round, round_file, write_round
from trainer.rounds.looked_at import look_at_rounds
from trainer.sample.keyed import KeyedAnswer

NAMES = ["text", "chat"]
ANSWERS = {
    PiecePlace(1, 4, 0, 2): KeyedAnswer([7, 8, 1], True),
    PiecePlace(1, 4, 0, 3): KeyedAnswer([9, 9], False),
}


def test_a_round_is_read_as_it_was_written_and_another_is_refused(tmp_path):
    record = RoundRecord(3, 6, ANSWERS)
    assert (record.num_tokens, record.num_ended) == (5, 1)
    digest = write_round(tmp_path, record, NAMES)
    assert read_round(tmp_path, 3, NAMES, digest) == record
    assert read_round(tmp_path, 3, ["chat"], digest).answers[PiecePlace(0, 4, 0, 2)].tokens == [7, 8, 1]
    with pytest.raises(CheckpointError, match="must hold the answers that the run learns from"):
        read_round(tmp_path, 4, NAMES, digest)
    file = round_file(tmp_path, 3)
    whole = file.read_text()
    for damaged in (whole.replace("[7, 8", "[7, 9"), whole.replace("true", "false"), whole[:-30], "", "[]\n"):
        file.write_text(damaged)
        with pytest.raises(CheckpointError, match=r"000003\.jsonl must hold the answers"):
            read_round(tmp_path, 3, NAMES, digest)


def test_rounds_are_held_against_the_ledger_and_the_newest_checkpoint(tmp_path):
    digests = [
        write_round(tmp_path, RoundRecord(n, n, dict([item])), NAMES)
        for n, item in enumerate(ANSWERS.items())
    ]
    chain = chain_digest(chain_digest("", digests[0]), digests[1])
    newest = {"number": 1, "digest": digests[1], "chain": chain}
    events = [{"event": "sampled", "number": n, "digest": digest} for n, digest in enumerate(digests)]
    lost = {"event": "sampled", "number": 1, "digest": "of an attempt that died"}
    said, is_sound = look_at_rounds(tmp_path, newest, [lost, *events], NAMES)
    assert is_sound and said.startswith("2 answers of 5 tokens in 2 rounds: as sampled.")
    said, is_sound = look_at_rounds(tmp_path, {**newest, "chain": "other"}, events, NAMES)
    assert not is_sound and "not those that the newest checkpoint learnt from" in said
    said, is_sound = look_at_rounds(tmp_path, newest, events[1:], NAMES)
    assert not is_sound and "knows no round 0" in said
    round_file(tmp_path, 0).unlink()
    said, is_sound = look_at_rounds(tmp_path, newest, events, NAMES)
    assert not is_sound and "000000.jsonl must hold" in said
