"""Stages in a row: order, pieces, batches, failures, accounts."""

import dataclasses
import pickle
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.manifest import Conversation, Record, TextRecord
from mimo_jax.preparation.accounts import Account, Limits, TooManyBadRecords
from mimo_jax.preparation.chain import Meter, identity, run_chain
from mimo_jax.preparation.elements import Dropped, Element, Outcome, Stage, StageFault
from mimo_jax.preparation.stages.subsets import KeepSubsets
from mimo_jax.preparation.stages.text_checks import CheckText


def element(number: int, **fields) -> Element:
    return Element(Record(f"r{number}", f"{number}.wav", **fields), np.ones(10 * (number + 1), np.float32), 10)


@dataclasses.dataclass(frozen=True)
class Cut(Stage):
    """Element k becomes k % 3 pieces; those without a piece are filtered."""

    name: ClassVar[str] = "cut"

    def process(self, one: Element) -> list[Outcome]:
        count = int(one.id[1:].split(".")[0]) % 3
        pieces = [
            dataclasses.replace(one, record=dataclasses.replace(one.record, id=f"{one.id}.{p}")) for p in range(count)
        ]
        return pieces or [Dropped(one.id, "filtered", "no_piece")]


@dataclasses.dataclass(frozen=True)
class Picky(Stage):
    """Fails on some; in batches."""

    name: ClassVar[str] = "picky"
    bad: tuple[str, ...] = ()
    batch_size: int = 4
    fault: bool = False

    def process_batch(self, elements: Sequence[Element]) -> list[list[Outcome]]:
        if self.fault:
            raise StageFault("no weights")
        for one in elements:
            if one.id in self.bad:
                raise RuntimeError(f"cannot take {one.id}")
        return [[one] for one in elements]


class Silent(Stage):
    name: ClassVar[str] = "silent"

    def process(self, one: Element) -> list[Outcome]:
        return []


def through(stages, items):
    meters = {stage.name: Meter() for stage in stages}
    outcomes = sorted(run_chain(stages, items, meters), key=lambda pair: pair[0])
    return outcomes, meters


@given(st.integers(0, 40), st.integers(1, 9), st.sets(st.integers(0, 39)))
def test_order_is_kept_and_nothing_is_lost(count, batch, bad):
    items = [element(i) for i in range(count)]
    outcomes, meters = through([Cut(), Picky(tuple(f"r{i}.1" for i in bad), batch)], items)
    expected = []
    for i in range(count):
        pieces = [f"r{i}.{p}" for p in range(i % 3)]
        expected += [(name, name.endswith(".1") and i in bad) for name in pieces] or [(f"r{i}", True)]
    assert [(o.id, isinstance(o, Dropped)) for _, o in outcomes] == expected
    account = Account.of(outcomes)
    assert account.items_in == count and account.balanced
    assert account.filtered == sum(i % 3 == 0 for i in range(count))
    assert account.reasons["failed_picky"] == sum(i % 3 == 2 and i in bad for i in range(count))
    assert meters["cut"].elements == count and meters["cut"].audio_seconds == sum(i + 1 for i in range(count))


def test_a_failure_is_quarantined_alone_with_its_error():
    outcomes, _ = through([Picky(("r2",), batch_size=4)], [element(i) for i in range(4)])
    assert outcomes[2][1] == Dropped("r2", "quarantined", "failed_picky", "RuntimeError: cannot take r2")
    assert [o.id for _, o in outcomes if isinstance(o, Element)] == ["r0", "r1", "r3"]


def test_faults_of_stages_stop_the_run():
    with pytest.raises(StageFault, match="no weights"):
        through([Picky(fault=True)], [element(0)])
    with pytest.raises(StageFault, match=r"silent .* gave \[0\] outcomes for 1 elements"):
        through([Silent()], [element(0)])


def test_stages_take_only_their_kind():
    items = [
        Element(TextRecord("t", "words")),
        element(1),
        Element(Conversation("c", [])),
        Dropped("x", "filtered", "y"),
    ]
    outcomes, meters = through([Picky(bad=("t", "c")), CheckText(), KeepSubsets(("user",))], items)
    assert [o.id for _, o in outcomes] == ["t", "r1", "c", "x"] and meters["picky"].elements == 1
    outcomes, _ = through([KeepSubsets(("core",))], items)
    assert [o.reason for _, o in outcomes] == ["other_subset"] * 3 + ["y"]


def test_texts_that_cannot_be_trained_on():
    texts = ["fine\ttoo\n", None, "  ", "bell\a", "del\x7f"]
    outcomes, _ = through([CheckText()], [element(i, text=text) for i, text in enumerate(texts)])
    reasons = [o.reason if isinstance(o, Dropped) else None for _, o in outcomes]
    assert reasons == [None, None, "empty_text", "control_characters", "control_characters"]


def test_accounts_add_up_and_have_a_limit():
    piece = element(0)
    one = Account.of(
        [((0, 0), piece), ((0, 1), Dropped("a", "quarantined", "r")), ((1,), Dropped("b", "filtered", "s"))]
    )
    two = Account.of([((0, 0), Dropped("a", "quarantined", "r")), ((0, 1), Dropped("a", "filtered", "s"))])
    assert (one.written, one.filtered, one.quarantined) == (1, 1, 0) and (two.quarantined, two.filtered) == (1, 0)
    both = Account.total([one, two])
    assert both.balanced and both.items_in == 3 and both.pieces.total() == 5 and both.reasons == {"r": 2, "s": 2}
    assert Account.from_json(both.to_json()) == both
    assert "3 in = 1 written + 1 filtered + 1 quarantined" in str(both) and "in pieces" in str(both)
    both.check(Limits(bad_share=0.34, bad_records=0), "source", "list")
    both.check(Limits(bad_share=0.0, bad_records=1), "source", "list")
    with pytest.raises(TooManyBadRecords, match=r"1 of 3 records are bad \(.*more than the limit of 33%; see list"):
        both.check(Limits(bad_share=0.33, bad_records=0), "source", "list")


def test_identity_is_of_settings_not_of_objects():
    assert identity(Picky(("a",))) == identity(pickle.loads(pickle.dumps(Picky(("a",)))))
    assert identity(Picky(("a",))) != identity(Picky(("b",)))
    assert identity([Picky(), np.mean]) == identity([Picky(), np.mean])
