import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.all_formats import formats
from mimo_jax.data.mixtures import MIXTURES, Curriculum, RateSchedule, get_mixture, tilt


def test_mixtures_name_known_tasks_of_their_stage():
    for name, mixture in MIXTURES.items():
        stage = "post_training" if name == "sft" else "pretraining"
        assert all(formats()[task].stage == stage for task in mixture.rates)
    named = {task for mixture in MIXTURES.values() for task in mixture.rates}
    # Conversations come from users alone, who give them a rate of their own.
    assert named == set(formats()) - {"sft_conversation"}
    assert get_mixture("asr").rates == {"asr": 1.0}
    with pytest.raises(KeyError, match="no mixture or task 'nothing'"):
        get_mixture("nothing")


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_schedule_is_even_and_counts_what_came_before(rates):
    schedule = RateSchedule(np.asarray(rates), period=1 << 12)
    task, before = schedule.rows(np.arange(9000))
    for i in range(len(rates)):
        mine = np.flatnonzero(task == i)
        assert before[mine].tolist() == list(range(len(mine)))
        expected = np.arange(1, 9001) * rates[i] / sum(rates)
        assert np.abs(np.cumsum(task == i) - expected).max() < 3 + 9000 / (1 << 12)
    again = schedule.rows(np.asarray([8999, 5, 4096]))
    assert again[0].tolist() == task[[8999, 5, 4096]].tolist()
    assert again[1].tolist() == before[[8999, 5, 4096]].tolist()


@given(st.lists(st.floats(0.1, 5), min_size=3, max_size=3), st.floats(0.25, 0.85))
def test_tilt_reaches_the_share_and_keeps_the_order_of_equals(rates, wanted):
    shares = np.asarray([0.2, 0.5, 0.9])
    out = tilt(np.asarray(rates), shares, wanted)
    assert abs(out @ shares - wanted) < 1e-9 and abs(out.sum() - 1) < 1e-9
    with pytest.raises(ValueError, match="0.200..0.900"):
        tilt(np.asarray(rates), shares, 0.95)


@given(
    st.lists(st.lists(st.floats(0.1, 5) | st.just(0.0), min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    st.lists(st.integers(1, 40_000), min_size=3, max_size=3),
)
def test_curriculum_counts_on_from_phase_to_phase(rates, tokens):
    table = np.asarray(rates)
    curriculum = Curriculum(table, np.asarray([100.0, 80.0, 90.0]), [*tokens[: len(table) - 1], None])
    task, before = curriculum.rows(np.arange(1500))
    for i in range(3):
        mine = task == i
        assert before[mine].tolist() == list(range(mine.sum()))
    for phase, (start, end) in enumerate(zip(curriculum.starts, [*curriculum.starts[1:], 1500], strict=True)):
        assert set(task[start:end].tolist()) <= set(np.flatnonzero(table[phase]).tolist())
    for phase, budget in enumerate(tokens[: len(table) - 1]):
        rows = curriculum.starts[phase + 1] - curriculum.starts[phase]
        mean = np.asarray([100.0, 80.0, 90.0]) @ table[phase] / table[phase].sum()
        assert (rows - 1) * mean < budget <= rows * mean * (1 + 1e-9)
    one = curriculum.rows(np.asarray([1499, 3]))
    assert one[0].tolist() == task[[1499, 3]].tolist() and one[1].tolist() == before[[1499, 3]].tolist()


def test_phases_without_an_end_must_be_last():
    for tokens in ([None, None], [5, 5], [0, None]):
        with pytest.raises(ValueError, match="the last has None"):
            Curriculum(np.ones((2, 1)), np.ones(1), tokens)
