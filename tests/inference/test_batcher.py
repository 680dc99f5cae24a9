"""Continuous batching: whoever comes, goes or gives up, everybody gets the answer that they would get alone."""

import numpy as np
import pytest

from mimo_jax.inference.requests import joined
from tests.inference.test_engine import CASES, Fixture, same


@pytest.fixture(scope="module")
def tiny(lm_tiny):
    return Fixture(lm_tiny)


def answers(batcher, arrivals, cancelled=()):
    """Results of requests that arrive before the given turns; `cancelled`: (turn, place among the requests)."""
    updates, tickets, shapes, turn = {}, [None] * len(arrivals), set(), 0
    while batcher.busy or turn <= max(when for when, _ in arrivals):
        for place, (when, request) in enumerate(arrivals):
            if when == turn:
                tickets[place] = batcher.submit(request)
                updates[tickets[place]] = []
        for when, place in cancelled:
            if when == turn:
                batcher.cancel(tickets[place])
        for update in batcher.turn():
            updates[update.ticket].append(update)
        shapes.add(batcher.shape)
        turn += 1
    assert batcher.running == batcher.waiting == 0
    return [updates[ticket] for ticket in tickets], shapes


def test_requests_come_and_go(tiny):
    lengths = (30, 3, 17, 9, 24, 1, 12, 5)
    random = [tiny.random_request(seed, max_new=new) for seed, new in enumerate(lengths)]
    requests = [*random[:4], *map(tiny.request, CASES), *random[4:]]
    alone = tiny.engine.generate(requests)
    arrivals = [(when, request) for when, request in zip((0, 0, 1, 2, 2, 3, 3, 5, 5, 6, 9, 40), requests, strict=True)]
    made, shapes = answers(tiny.engine.batcher(max_batch=4, least_rows=1, positions=3, prefill_positions=32), arrivals)
    for parts, expected in zip(made, alone, strict=True):
        same(joined(parts), expected)
        assert [p.stop_reason is None for p in parts] == [True] * (len(parts) - 1) + [False]
        assert all(len(p.text) <= 3 for p in parts)
    for case, parts in zip(CASES, made[4:8], strict=True):
        tiny.check(case, joined(parts))
    assert max(rows for rows, _ in shapes) == 4, "more ran together than allowed"
    assert {rows for rows, _ in shapes} > {1, 4}, "rows that nobody used stayed"


def test_who_gives_up_disturbs_nobody(tiny):
    requests = [tiny.random_request(seed, max_new=new) for seed, new in enumerate((20, 20, 20, 6, 6))]
    alone = tiny.engine.generate(requests)
    batcher = tiny.engine.batcher(max_batch=3, positions=2)
    made, _ = answers(batcher, [(0, r) for r in requests], cancelled=[(2, 1), (2, 4)])
    assert not made[4], "was still waiting"
    assert made[1] and made[1][-1].stop_reason is None
    for place in (0, 2, 3):
        same(joined(made[place]), alone[place])
    assert not batcher.cancel(1) and not batcher.cancel(77)
    # Before its prompt is through, and all alone.
    ticket = batcher.submit(requests[0])
    assert batcher.cancel(ticket) and not batcher.busy


def test_a_stream_is_the_answer_in_parts(tiny):
    request = tiny.request("gen_audio")
    parts = list(tiny.engine.stream(request, positions=2))
    assert len(parts) > 2
    tiny.check("gen_audio", joined(parts))
    with pytest.raises(ValueError, match="max_new = 0"):
        next(tiny.engine.stream(tiny.request("gen_text", max_new=0)))
    with pytest.raises(ValueError, match="more is to come"):
        joined(parts[:-1])


def test_dispatches_end_where_sound_can_begin(tiny):
    """Patches that a vocoder needs first come as soon as they are there, also where text goes before them."""
    request = tiny.request("gen_audio")
    (whole,) = tiny.engine.generate([request])
    spoken = np.flatnonzero(whole.text == tiny.config.empty_token_id)
    assert 0 < spoken[0] and spoken[2] < 8 < len(whole.text) - 1
    batcher = tiny.engine.batcher(positions=9, first_patches=3)
    batcher.submit(request)
    (update,) = batcher.turn()
    assert len(update.codes) == 3 and len(update.text) == spoken[2] + 1
    (rest,) = batcher.turn()
    tiny.check("gen_audio", joined([update, rest]))
    # Another row is no obstacle, and text alone comes as before.
    batcher = tiny.engine.batcher(positions=9, first_patches=3)
    tickets = [batcher.submit(tiny.request(name)) for name in ("gen_text", "gen_audio")]
    parts = {ticket: [] for ticket in tickets}
    while batcher.busy:
        for update in batcher.turn():
            parts[update.ticket].append(update)
    tiny.check("gen_text", joined(parts[tickets[0]]))
    assert len(parts[tickets[1]][0].text) == spoken[2] + 1
    batcher.submit(tiny.request("gen_text"))
    assert len(batcher.turn()[0].text) == 9


def test_long_prompts_run_in_pieces_between_the_turns_of_others(tiny):
    rng = np.random.default_rng(0)
    long = tiny.request("gen_text", max_new=2)
    text = rng.integers(0, 280, 500).astype(np.int32)
    long = type(long)(text, np.zeros((500, 4, 8), np.int32), max_new=2)
    short = tiny.random_request(5, max_new=30)
    batcher = tiny.engine.batcher(positions=4, prefill_positions=64)
    first = batcher.submit(short)
    batcher.turn()
    second = batcher.submit(long)
    heard = [{u.ticket for u in batcher.turn()} for _ in range(5)]
    assert heard == [{first}] * 5, "others waited for a long prompt"
    rest = []
    while batcher.busy:
        rest += [u for u in batcher.turn() if u.ticket == second]
    same(joined(rest), tiny.engine.generate([long])[0])
