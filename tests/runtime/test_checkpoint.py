"""Checkpoints: what is saved comes back bit for bit, on other devices too; a killed or damaged save costs one step."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vero_jax.errors import UserError
from vero_jax.runtime.checkpoint import CheckpointMeta, Checkpoints, abstract_like, checksums

REPO = Path(__file__).parents[2]

# Orbax leaves coroutines unfinished when it cannot read an array.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collect_garbage():
    """Within the test, so that the filter above sees what Orbax left."""
    yield
    gc.collect()


def meta(step: int, **changes) -> CheckpointMeta:
    values = {
        "step": step,
        "phase": "reinforcement",
        "phase_step": step,
        "seed": 3,
        "data_position": 2 * step,
        "metrics_position": 100 * step,
        "fingerprint": "f",
        "kl_controller": {"coef": 0.1},
        "seconds": {"reinforcement": 1.5},
        "results": {"before": {"domains": {"stem": 0.25}}},
    }
    return CheckpointMeta(**{**values, **changes})


def make_state(scale: float = 1.0):
    params = {
        "layers": {"w": scale * jax.random.normal(jax.random.key(0), (4, 40, 60)), "used": jnp.asarray([True, False])},
        "norm": scale * jnp.linspace(-1, 1, 5).astype(jnp.bfloat16),
    }
    return {"params": params, "optimizer": optax.adamw(1e-3).init(params), "step": jnp.asarray(7, jnp.int32)}


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_round_trip_bit_for_bit(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract_like(state)) is None
        checkpoints.save(5, state, meta(5))
    with Checkpoints(tmp_path) as checkpoints:
        restored, restored_meta = checkpoints.restore_latest(abstract_like(state), fingerprint="f")
    assert_same(restored, state)
    assert restored_meta == meta(5)
    assert restored_meta.versions["jax"] == jax.__version__


def test_only_the_last_ones_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step), meta(step))
        checkpoints.wait()
        assert checkpoints.steps == [3, 4]
        restored, _ = checkpoints.restore_latest(abstract_like(make_state()))
        assert_same(restored, make_state(4))


def test_saving_a_step_twice_does_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), meta(1))
        checkpoints.save(1, make_state(), meta(1))
        checkpoints.wait()
        checkpoints.save(1, make_state(), meta(1))
        assert checkpoints.steps == [1]


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    state = {"w": jnp.arange(3_000_000, dtype=jnp.float32)}
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    abstract = abstract_like(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, meta(1))
        jax.block_until_ready(step(state))
        checkpoints.wait()
        restored, _ = checkpoints.restore_latest(abstract)
    np.testing.assert_array_equal(np.asarray(restored["w"]), np.arange(3_000_000, dtype=np.float32))


def two_checkpoints(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), meta(step))


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def remove_metadata(folder: Path) -> None:
    (folder / "state" / "_METADATA").unlink()


def remove_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "state" / "ocdbt.process_0")


def truncate_arrays(folder: Path) -> None:
    file = largest(folder / "state" / "ocdbt.process_0")
    os.truncate(file, file.stat().st_size // 2)


def flip_bytes(folder: Path) -> None:
    file = largest(folder / "state" / "ocdbt.process_0")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = bytes(255 - byte for byte in content[middle : middle + 16])
    file.write_bytes(content)


def spoil_meta(folder: Path) -> None:
    (folder / "meta" / "metadata").write_text('{"step": ')


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [remove_metadata, remove_arrays, truncate_arrays, flip_bytes, spoil_meta, empty_folder]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_latest_falls_back_to_the_one_before(tmp_path, damage):
    two_checkpoints(tmp_path)
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match=rf"{tmp_path}/2 cannot be read"):
            restored, restored_meta = checkpoints.restore_latest(abstract_like(make_state()))
        assert restored_meta.step == 1
        assert_same(restored, make_state(1))
        # the run gets to step 2 again
        checkpoints.save(2, make_state(20), meta(2))
        checkpoints.wait()
        assert checkpoints.steps == [1, 2] and (tmp_path / "broken_2").is_dir()
    with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        restored, _ = checkpoints.restore_latest(abstract_like(make_state()))
    assert_same(restored, make_state(20))


def test_all_damaged_is_said_and_nothing_is_begun_again(tmp_path):
    two_checkpoints(tmp_path)
    for step in ("1", "2"):
        truncate_arrays(tmp_path / step)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=r"none of the checkpoints .* \(1, 2\)"),
    ):
        checkpoints.restore_latest(abstract_like(make_state()))


def test_another_model_is_refused_by_name_of_the_array(tmp_path):
    two_checkpoints(tmp_path)
    other = make_state()
    other["params"]["norm"] = jnp.zeros(9, jnp.bfloat16)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"params/norm is \(5,\) there and \(9,\) here"):
            checkpoints.restore_latest(abstract_like(other))
        del other["params"]["norm"]
        with pytest.raises(UserError, match=r"params/norm is \(5,\) there and absent here"):
            checkpoints.restore_latest(abstract_like(other))


def test_other_settings_are_refused(tmp_path):
    two_checkpoints(tmp_path)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="other settings"):
        checkpoints.restore_latest(abstract_like(make_state()), fingerprint="g")


def test_settings_that_differ_from_those_inside_are_named(tmp_path):
    state, config = make_state(), {"optim": {"lr": 1e-6}, "trainer": {"steps": 10}, "seed": 0}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, meta(1, config=config))
        other = {"optim": {"lr": 2e-6}, "trainer": {"steps": 20}, "seed": 0}
        with pytest.raises(UserError, match=r"optim.lr \(was 1e-06, now 2e-06\)\. Set them back"):
            checkpoints.restore_latest(abstract_like(state), "another", other)
        found, there = checkpoints.restore_latest(abstract_like(state), "f", other)
        assert there.config == config
        assert_same(found, state)


def test_the_best_are_kept_beside_the_last_and_known_after_a_restart(tmp_path):
    state = {"w": jnp.ones(3)}

    def save(checkpoints: Checkpoints, step: int, score: float | None) -> list[int]:
        if score is not None:
            checkpoints.note_score(step, score)
        checkpoints.save(step, state, meta(step))
        checkpoints.wait()
        return checkpoints.steps

    with Checkpoints(tmp_path, keep=2, keep_best=1) as checkpoints:
        for step, score in enumerate([0.1, 0.7, 0.3, None, 0.7], start=1):
            kept = save(checkpoints, step, score)
    assert kept == [2, 4, 5]  # of two equal ones the older
    with Checkpoints(tmp_path, keep=2, keep_best=1) as checkpoints:
        assert checkpoints.scores == {1: 0.1, 2: 0.7, 3: 0.3, 5: 0.7}
        assert save(checkpoints, 6, 0.9) == [5, 6]
        assert save(checkpoints, 7, None) == [6, 7]
        assert save(checkpoints, 8, 0.2) == [6, 7, 8]
    (tmp_path / "scores.json").write_text("{half")
    with pytest.warns(UserWarning, match=r"scores.json cannot be read"), Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.scores == {}


def test_one_checkpoint_by_its_number(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.full(3, step)}, meta(step))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        state, found = checkpoints.restore(1, abstract_like({"w": jnp.zeros(3, jnp.int32)}))
        assert state["w"].tolist() == [1, 1, 1] and found.step == 1
        with pytest.raises(UserError, match=r"no checkpoint .*/7; there are 1, 2"):
            checkpoints.restore(7, abstract_like({"w": jnp.zeros(3, jnp.int32)}))
        with pytest.raises(UserError, match="does not fit this model"):
            checkpoints.restore(1, abstract_like({"w": jnp.zeros(4, jnp.int32)}))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_save_that_cannot_fit_is_not_begun(tmp_path, monkeypatch):
    state = {"w": jnp.ones((1000, 1000))}
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 3_000_000))
        with pytest.raises(UserError, match=r"disk is full \(0\.00 GB are free, and a checkpoint takes 0\.00\)"):
            checkpoints.save(1, state, meta(1))
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("1")]


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:

        def refuse(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", refuse)
            with pytest.raises(UserError, match="disk is full"):
                checkpoints.save(1, make_state(), meta(1))

            def refuse_in_background(*args, **kwargs):
                raise ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: No space left on device]")

            patch.setattr(checkpoints._manager, "save", refuse_in_background)
            with pytest.raises(UserError, match="disk is full"):
                checkpoints.save(1, make_state(), meta(1))


def run_script(code: str, *args: object, devices: int = 1, **kwargs) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        **kwargs,
    )


def test_checksums_notice_any_bit_and_any_order():
    state = make_state()
    sums = checksums(state)
    assert sums == checksums(make_state()) and len(sums) == len(jax.tree.leaves(state))
    w = np.array(state["params"]["layers"]["w"])
    for change in (
        lambda a: a.view(np.uint32).__setitem__((3, 2, 1), 0),
        lambda a: a.__setitem__(0, a[0, ::-1].copy()),
    ):
        other = w.copy()
        change(other)
        state["params"]["layers"]["w"] = jnp.asarray(other)
        assert {name for name, value in checksums(state).items() if value != sums[name]} == {"params/layers/w"}


SAVE_SHARDED = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vero_jax.runtime.checkpoint import Checkpoints, CheckpointMeta, abstract_like
rows = int(sys.argv[2])
mesh = Mesh(np.array(jax.devices()).reshape(rows, -1), ("data", "fsdp"))
def put(x, *spec):
    return jax.device_put(x, NamedSharding(mesh, P(*spec)))
w = np.arange(64 * 24, dtype=np.float32).reshape(64, 24)
state = {"w": put(w, "fsdp", None), "b": put(w[0].astype(jnp.bfloat16), None)}
"""


@pytest.mark.parametrize(("devices", "rows"), [(2, 1), (16, 4)])
def test_saved_on_eight_devices_restored_on_others(tmp_path, devices, rows):
    save = run_script(
        SAVE_SHARDED
        + """
assert len(jax.devices()) == 8
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, state, CheckpointMeta(1, "reinforcement", 1, 0, 1, 0, "f"))
""",
        tmp_path,
        2,
        devices=8,
    )
    assert save.wait(120) == 0
    restore = run_script(
        SAVE_SHARDED
        + """
state = {"w": put(w * 0, None, "fsdp"), "b": put(w[0].astype(jnp.bfloat16) * 0, "data")}
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    restored, meta = checkpoints.restore_latest(abstract_like(state))
np.testing.assert_array_equal(np.asarray(restored["w"]), w)
np.testing.assert_array_equal(np.asarray(restored["b"]), w[0].astype(jnp.bfloat16))
assert restored["w"].sharding == state["w"].sharding and restored["b"].sharding == state["b"].sharding
print("same on", len(jax.devices()))
""",
        tmp_path,
        rows,
        devices=devices,
    )
    assert restore.communicate(timeout=120)[0].strip() == f"same on {devices}"


KILLED = """
import sys
from pathlib import Path
import jax.numpy as jnp
from vero_jax.runtime.checkpoint import Checkpoints, CheckpointMeta
checkpoints = Checkpoints(Path(sys.argv[1]))
for step in range(1, 1000):
    state = {"w": jnp.full((4, 2_000_000), step, jnp.float32) + jnp.arange(2_000_000) / 2**20}
    checkpoints.save(step, state, CheckpointMeta(step, "reinforcement", step, 0, step, 0, "f"))
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_killed_in_the_middle_of_a_save(tmp_path, delay):
    process = run_script(KILLED, tmp_path)
    for line in process.stdout:
        if int(line) >= 3:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    abstract = abstract_like({"w": jnp.zeros((4, 2_000_000), jnp.float32)})
    with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        restored, restored_meta = checkpoints.restore_latest(abstract)
        assert restored_meta.step >= 2
        expected = restored_meta.step + np.arange(2_000_000, dtype=np.float32) / 2**20
        np.testing.assert_array_equal(np.asarray(restored["w"]), np.broadcast_to(expected, (4, 2_000_000)))
        assert not [path for path in tmp_path.iterdir() if not path.name.isdigit()]
        checkpoints.save(restored_meta.step + 1, {"w": restored["w"]}, meta(restored_meta.step + 1))
