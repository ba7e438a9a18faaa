"""Garbage is collected on the common step and at no other time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from trainer.runtime.gc import ManualGc


class _Node:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector_as_before() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.freeze()
    gc.enable()


def test_cycles_live_until_the_common_step() -> None:
    collector = ManualGc(every_steps=10)
    ghost = weakref.ref(_Node())
    _ = [[] for _ in range(5000)]
    assert not collector.collect_if_due(9)
    assert ghost() is not None
    assert collector.collect_if_due(10)
    assert ghost() is None


def test_close_goes_back_to_automatic() -> None:
    collector = ManualGc(every_steps=10)
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0
    collector.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_close_leaves_a_collector_off_that_was_off() -> None:
    gc.disable()
    ManualGc(every_steps=10).close()
    assert not gc.isenabled()


def test_zero_leaves_automatic_collection_on() -> None:
    collector = ManualGc(every_steps=0)
    assert gc.isenabled()
    assert not collector.collect_if_due(0)
    collector.close()
    assert gc.isenabled()
