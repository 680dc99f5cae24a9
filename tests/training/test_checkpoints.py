"""Checkpoints: damage, a full disk, what is kept, other meshes and dtypes, what a save costs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mimo_jax.cli import EXIT_TRY_AGAIN, UserError
from mimo_jax.training import integrity
from mimo_jax.training.checkpoints import FOLDER, Checkpoints, load_params
from mimo_jax.training.meta import Meta
from mimo_jax.training.retention import Keep


def state_of(step: int) -> dict:
    return {"params": {"w": jnp.full((64, 16), step, jnp.float32), "b": jnp.arange(8.0) * step}}


def abstract(state, sharding=None, dtype=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding), state)


def save_steps(folder: Path, steps, **options) -> None:
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(state_of(step), Meta(step=step, text_tokens=10 * step))
    checkpoints.close()


def kept_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / FOLDER).iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    save_steps(folder, [1, 2])
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, to / "run"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"), [(flip, "other bytes than were written"), (cut, "were written"), (Path.unlink, "is missing")]
)
def test_any_damaged_file_is_named_and_the_checkpoint_before_it_used(two, tmp_path, caplog, damage, said):
    files = sorted(path for path in (two / FOLDER / "2").glob("*/**/*") if path.is_file() and path.stat().st_size)
    assert any("state" in str(path) and "/d/" in str(path) for path in files), "no array file among them"
    for number, file in enumerate(files):
        (tmp_path / str(number)).mkdir()
        folder = copy_of(two, tmp_path / str(number))
        name = file.relative_to(two / FOLDER / "2")
        damage(folder / FOLDER / "2" / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            restored = Checkpoints(folder).restore_latest(abstract(state_of(0)))
        assert restored is not None
        assert restored[1].step == 1
        np.testing.assert_array_equal(restored[0]["params"]["w"], state_of(1)["params"]["w"])
        assert f"{name} " in caplog.text and said in caplog.text and "trying the one before it" in caplog.text
        assert (folder / "damaged_checkpoint_2").is_dir()


def test_the_same_step_may_be_damaged_twice(two, tmp_path):
    folder = copy_of(two, tmp_path)
    for _ in range(2):
        cut(folder / FOLDER / "2" / "meta" / "metadata")
        checkpoints = Checkpoints(folder)
        assert checkpoints.restore_latest(abstract(state_of(0)))[1].step == 1
        checkpoints.save(state_of(2), Meta(step=2))
        checkpoints.close()
    assert (folder / "damaged_checkpoint_2").is_dir() and (folder / "damaged_checkpoint_2_2").is_dir()


def test_load_params_refuses_a_flipped_byte(two, tmp_path):
    folder = copy_of(two, tmp_path)
    flip(max((folder / FOLDER / "2" / "state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size))
    with pytest.raises(UserError, match="damaged .*other bytes"):
        load_params(folder)


def test_whole_checkpoint_of_another_shape_is_a_mistake_and_no_damage(two, tmp_path):
    folder = copy_of(two, tmp_path)
    other = {"params": {"w": jnp.zeros((64, 17)), "b": jnp.zeros(8)}}
    with pytest.raises(UserError, match="files are whole, but they do not fit"):
        Checkpoints(folder).restore_latest(abstract(other))
    assert kept_steps(folder) == [1, 2]


def test_restore_into_another_mesh_and_dtype(two):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    target = abstract(state_of(0), NamedSharding(mesh, PartitionSpec()), jnp.bfloat16)
    target["params"]["w"] = jax.ShapeDtypeStruct(
        (64, 16), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("a", "b"))
    )
    restored, _ = Checkpoints(two).restore_latest(target)
    assert restored["params"]["w"].sharding.spec == PartitionSpec("a", "b")
    assert restored["params"]["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(restored["params"]["w"], np.full((64, 16), 2, jnp.bfloat16))


def test_keeps_the_latest_token_milestones_and_the_best(tmp_path):
    keep = Keep(latest=2, every_tokens=25, best_metric="heldout/loss", best=1)
    losses = {2: 3.0, 4: 1.0, 6: 2.0}
    for steps in ([1, 2, 3, 4], [5, 6, 7, 8, 9]):  # a restart in between
        checkpoints = Checkpoints(tmp_path, keep)
        for step in steps:
            metrics = {"heldout/loss": losses[step]} if step in losses else {}
            checkpoints.save(state_of(step), Meta(step=step, text_tokens=10 * step, metrics=metrics))
        checkpoints.close()
    # First behind 25, 50, 75 tokens: 3, 5, 8; best: 4; latest: 8, 9.
    assert kept_steps(tmp_path) == [3, 4, 5, 8, 9]


def test_best_metric_must_exist():
    with pytest.raises(UserError, match=r"no such metric; it has \['a/loss'\]"):
        Keep(best_metric="b/loss").check_metric({"a/loss": 1.0})
    with pytest.raises(UserError, match="at least 1"):
        Keep(latest=0)


def test_cost_of_a_save_is_measured(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.take_figures() == {}
    checkpoints.save({"params": {"w": jnp.ones((512, 512))}}, Meta(step=1))
    checkpoints.wait()
    figures = checkpoints.take_figures()
    assert 0 < figures["checkpoint/blocked_seconds"] <= figures["checkpoint/seconds"]
    on_disk = sum(path.stat().st_size for path in (tmp_path / FOLDER / "1").rglob("*") if path.is_file())
    assert figures["checkpoint/gigabytes"] == pytest.approx(on_disk / 1e9)
    assert figures["checkpoint/host_memory_gigabytes"] >= 0
    assert checkpoints.take_figures() == {}


def test_half_written_checkpoint_is_invisible(two, tmp_path):
    folder = copy_of(two, tmp_path)
    os.rename(folder / FOLDER / "2", folder / FOLDER / "2.orbax-checkpoint-tmp")
    assert Checkpoints(folder).restore_latest(abstract(state_of(0)))[1].step == 1


FULL_DISK = """
import resource, signal, sys, time
import jax.numpy as jnp, numpy as np
from mimo_jax.cli import UserError
from mimo_jax.training.checkpoints import Checkpoints
from mimo_jax.training.meta import Meta
checkpoints = Checkpoints(sys.argv[1])
state = {"params": {"w": jnp.asarray(np.random.default_rng(0).normal(size=(300, 1000)))}}
checkpoints.save(state, Meta(step=1))
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # a write of more fails as on a full disk
try:
    checkpoints.save(state, Meta(step=2))
    for _ in range(600):
        checkpoints.check()
        time.sleep(0.1)
except UserError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_failed_write_stops_with_a_message_and_keeps_the_checkpoint_before(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "checkpoint of step 2 could not be written" in done.stdout
    assert "the checkpoint of step 1 is kept" in done.stdout and "Free space" in done.stdout
    assert [path.name for path in (tmp_path / FOLDER).iterdir() if path.name[0].isdigit()] == ["1"]
    assert integrity.has_manifest(tmp_path / FOLDER / "1")
    assert integrity.find_damage(tmp_path / FOLDER / "1") is None


def test_a_host_that_is_lost_during_a_save_is_no_mistake(tmp_path, monkeypatch):
    """The others' save fails: what starts runs again has to, which it does not after 2."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_of(1), Meta(step=1))
    checkpoints.wait()

    finish = checkpoints._manager.wait_until_finished

    def fail():
        finish()
        raise RuntimeError("UNAVAILABLE: the following tasks are unhealthy (stopped sending heartbeats): task 3")

    checkpoints.save(state_of(2), Meta(step=2))
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", fail)
    with pytest.raises(UserError, match="heartbeats.*step 1 is kept. Start again") as error:
        checkpoints.wait()
    assert error.value.exit_code == EXIT_TRY_AGAIN
