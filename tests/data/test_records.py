import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.data.records import Example, RecordReader, from_bytes, to_bytes, write_records


def example(n, p, name="x"):
    rng = np.random.default_rng(n + p)
    return Example(
        name,
        "asr",
        rng.integers(0, 1 << 20, n).astype(np.int32),
        rng.integers(0, 1025, (p, 4, 8)).astype(np.uint16),
        rng.integers(0, 2, n).astype(np.uint8),
        tuple(range(0, n, 3)),
    )


@given(
    st.integers(0, 40), st.integers(0, 9), st.text(max_size=9), st.lists(st.sampled_from([1, 129, 60000]), min_size=8)
)
def test_round_trip(n, p, name, sizes):
    one = example(n, p, name)
    one = dataclasses.replace(one, codes=one.codes % np.asarray(sizes[:8], np.uint16))
    back = from_bytes(to_bytes(one))
    assert (back.id, back.task, back.borders) == (one.id, one.task, one.borders)
    for field in ("text", "codes", "loss"):
        np.testing.assert_array_equal(getattr(back, field), getattr(one, field))
        assert getattr(back, field).dtype == getattr(one, field).dtype


def test_bytes_without_information_are_not_written():
    one = example(7, 100)
    whole = len(to_bytes(one))
    narrow = dataclasses.replace(one, codes=np.where(np.arange(8) < 2, one.codes, one.codes % 129).astype(np.uint16))
    assert whole - len(to_bytes(narrow)) == pytest.approx(100 * 4 * 6, abs=8)


def test_records_of_the_first_schema_are_read():
    one = example(5, 2)
    fields = {"version": 1, "id": "x", "task": "asr", "positions": 5, "codes": [2, 4, 8], "borders": [0, 3]}
    header = msgpack.packb(fields)
    arrays = one.text.tobytes() + one.codes.tobytes() + one.loss.tobytes()
    back = from_bytes(len(header).to_bytes(4, "little") + header + bytes(-len(header) % 4) + arrays)
    for field in ("text", "codes", "loss"):
        np.testing.assert_array_equal(getattr(back, field), getattr(one, field))


def test_cut_or_foreign_records_are_refused():
    data = to_bytes(example(5, 2))
    with pytest.raises(ValueError, match="bytes"):
        from_bytes(data[:-1])
    with pytest.raises(ValueError, match="version 9"):
        from_bytes(data.replace(b"version\x02", b"version\x09"))


def test_files_appear_complete_and_read_back_in_any_order(tmp_path):
    data = [to_bytes(example(i + 1, i, str(i))) for i in range(10)]
    assert write_records(tmp_path / "a", data[:6]) == 6
    write_records(tmp_path / "b", data[6:])
    write_records(tmp_path / "again", data[:6])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "again").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "again", "b"]
    for cache in (0, 500, 1 << 20):
        reader = RecordReader([tmp_path / "a", tmp_path / "b"], cache)
        assert len(reader) == 10
        for order in ([9, 0, 5, 6, 5], [1], [], list(range(10))):
            assert reader.read(order) == [data[i] for i in order]


def test_failing_writer_leaves_no_file(tmp_path):
    def records():
        yield b"x"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_records(tmp_path / "a", records())
    assert not (tmp_path / "a").exists()
