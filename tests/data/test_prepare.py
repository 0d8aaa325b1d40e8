"""The command: its folder, what it repeats and what it refuses, disks that are full or closed, and its memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_rows import hub_row, picture, write_hub

from vero_jax.config import DataConfig
from vero_jax.data import disk, making, prepare, prepared
from vero_jax.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two configs, one of them with both splits."""
    write_hub(tmp_path / "hub", [hub_row(number) for number in range(3)])
    write_hub(tmp_path / "hub", [hub_row(9)], split="val")
    return write_hub(tmp_path / "hub", [hub_row(5, ability="chart_ocr")], source="chart_ocr-made")


def command(source: Path | str, *arguments: str | Path) -> int:
    return prepare.main(["--source", str(source), *map(str, arguments)])


def files_of(folder: Path) -> dict[str, int]:
    """Every file below a folder and when it was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def ids(source: Path | str, tmp_path: Path, split: str = "train") -> list[str]:
    data = prepare.prepare(str(source), DataConfig(cache_dir=str(tmp_path / "cache")))
    rows = data.examples(split)
    return [rows[number].id for number in range(len(rows))]


def in_child(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Runs the command with some lines before it, and gives what it said."""
    program = f"import sys\n{code}\nfrom vero_jax.data.prepare import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, **options
    )


def test_out_is_a_folder_of_tfds_that_others_read_by_name(source, tmp_path):
    assert command(source, "--out", tmp_path / "out") == 0
    folder = tmp_path / "out" / "vero_600k" / "stem-made" / "1.0.0"
    assert {"index-train.parquet", "index-val.parquet", "report.json", "dataset_info.json"} <= set(os.listdir(folder))
    code = (
        "import sys, tensorflow_datasets as tfds, vero_jax.data.builder\n"
        "rows = tfds.data_source('vero_600k/stem-made', data_dir=sys.argv[1], split='train')\n"
        "other = tfds.builder('vero_600k/chart_ocr-made', data_dir=sys.argv[1])\n"
        "print(len(rows), rows[2]['id'].decode(), other.name)\n"
        "print(len(tfds.builder_from_directory(sys.argv[2]).as_data_source('val')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out", folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3", "row2", "vero_600k", "1"]


def test_a_prepared_folder_is_a_source_without_the_files_it_was_made_from(source, tmp_path):
    first = prepare.prepare_into(tmp_path / "out", str(source), DataConfig(), prepare.PrepareOptions())
    shutil.rmtree(source)
    before = files_of(tmp_path / "out")
    again = prepare.prepare(str(tmp_path / "out"), DataConfig(cache_dir=str(tmp_path / "cache")))
    assert files_of(tmp_path / "out") == before
    assert not (tmp_path / "cache").exists()
    assert again.fingerprint == first.fingerprint
    assert [part.config for part in again.parts] == ["chart_ocr-made", "stem-made"]
    assert ids(tmp_path / "out", tmp_path) == ["row5", "row0", "row1", "row2"]


def test_the_same_rows_have_the_same_fingerprint_from_wherever_they_come(source, tmp_path):
    one = prepare.prepare(str(source), DataConfig(cache_dir=str(tmp_path / "cache")))
    moved = shutil.copytree(source, tmp_path / "moved")
    os.utime(moved / "stem-made" / "train-00000-of-00001.parquet", (1, 1))
    two = prepare.prepare_into(tmp_path / "out", str(moved), DataConfig(), prepare.PrepareOptions())
    assert one.fingerprint == two.fingerprint
    write_hub(moved, [hub_row(0), hub_row(1), hub_row(2, reward_model={"style": "rule", "ground_truth": "B"})])
    changed = prepare.prepare(str(moved), DataConfig(cache_dir=str(tmp_path / "cache")))
    assert [a.fingerprint == b.fingerprint for a, b in zip(one.parts, changed.parts, strict=True)] == [True, False]


def test_the_same_command_again_writes_nothing_and_a_new_config_is_added(source, tmp_path, capsys):
    assert command(source, "--out", tmp_path / "out", "--configs", "stem-made") == 0
    before = files_of(tmp_path / "out" / "vero_600k")
    capsys.readouterr()
    assert command(source, "--out", tmp_path / "out") == 0
    assert "preparing chart_ocr-made" in (said := capsys.readouterr().out) and "preparing stem-made" not in said
    after = files_of(tmp_path / "out" / "vero_600k")
    assert before.items() < after.items()
    assert ids(tmp_path / "out", tmp_path) == ["row5", "row0", "row1", "row2"], "in the order of the source"


def test_a_config_made_from_other_files_is_refused_and_overwrite_makes_it_anew(source, tmp_path, capsys):
    assert command(source, "--out", tmp_path / "out") == 0
    write_hub(source, [hub_row(7)])
    assert command(source, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "vero_600k/stem-made was prepared from other files" in error and "--overwrite" in error
    assert command(source, "--out", tmp_path / "out", "--overwrite") == 0
    assert ids(tmp_path / "out", tmp_path) == ["row5", "row7"]
    assert sorted(os.listdir(tmp_path / "out")) == ["report.json", "vero_600k"]


def test_a_limit_takes_the_first_rows_of_every_split_and_is_another_data_set(source, tmp_path, capsys):
    assert command(source, "--out", tmp_path / "out", "--limit-per-split", 2) == 0
    assert ids(tmp_path / "out", tmp_path) == ["row5", "row0", "row1"]
    assert command(source, "--out", tmp_path / "out") == 2
    assert "another limit" in capsys.readouterr().err
    assert command(source, "--out", tmp_path / "out", "--limit-per-split", 0) == 2
    assert "--limit-per-split is 0" in capsys.readouterr().err


def test_a_wrong_config_is_refused_with_the_nearest_ones(source, tmp_path, capsys):
    assert command(source, "--out", tmp_path / "out", "--configs", "stem_made") == 2
    assert "'stem_made', which the source does not have; did you mean stem-made" in capsys.readouterr().err


def test_the_readme_decides_the_order_of_the_configs(source, tmp_path):
    header = "configs:\n- config_name: stem-made\n  data_files: x\n- config_name: other\n  data_files:\n"
    (source / "README.md").write_text(f"---\n{header}  - split: train\n    path: chart_ocr-made/train-*\n---\nText\n")
    assert ids(source, tmp_path) == ["row0", "row1", "row2", "row5"]


def test_rows_without_the_wanted_splits_are_refused_by_name(source, tmp_path, capsys):
    assert command(source, "--out", tmp_path / "out") == 0
    assert command(tmp_path / "out", "--train-split", "training", "--val-split", "test") == 2
    assert "has rows of train and val, none of training or test" in capsys.readouterr().err


def test_out_may_not_be_the_source_and_prepared_data_is_not_prepared_again(source, tmp_path, capsys):
    assert command(source, "--out", source) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert command(source, "--out", tmp_path / "out") == 0
    for arguments in (["--overwrite"], ["--out", tmp_path / "other"], ["--configs", "stem-made"]):
        assert command(tmp_path / "out", *arguments) == 2
        assert "is prepared already" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert command(tmp_path / "out") == 0
    assert f"2 configs in {tmp_path / 'out'}" in capsys.readouterr().out


def test_several_files_of_rows_go_into_one_folder(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    for name in ("first.rows", "second"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(hub_row(0, id=name, image="a.png")) + "\n")
        assert command(tmp_path / f"{name}.jsonl", "--out", tmp_path / "out") == 0
    assert sorted(os.listdir(tmp_path / "out" / "vero_600k")) == ["first_rows", "second"]
    assert ids(tmp_path / "out", tmp_path) == ["first.rows", "second"]


def test_duplicate_ids_are_kept_counted_over_all_configs_and_named(source, tmp_path, capsys):
    write_hub(source, [hub_row(1), hub_row(5)], source="stem-more")
    assert command(source, "--out", tmp_path / "out") == 0
    assert "train: 6 rows kept, 0 dropped" in (said := capsys.readouterr().out)
    assert "duplicate ids in train: 2 rows, kept; the first one is 'row1'" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"]["duplicates"] == {"train": [2, "row1"]}


@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_a_damaged_shard_is_named_with_what_to_do(source, tmp_path, capsys, damage):
    assert command(source, "--out", tmp_path / "out") == 0
    shard = next((tmp_path / "out" / "vero_600k" / "stem-made").rglob("*train.array_record*"))
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data[:-10] if damage == "cut" else data[:-1] + b"!")
    capsys.readouterr()
    # The size is looked at always, the content when asked to.
    assert command(tmp_path / "out", *(["--verify"] if damage == "changed" else [])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "damaged" in error and shard.name in error and "delete" in error
    if damage != "changed":
        assert command(source, "--out", tmp_path / "out") == 2
        assert command(source, "--out", tmp_path / "out", "--overwrite", "--verify") == 0
        assert "every checksum is right" in capsys.readouterr().out


def test_a_shard_that_is_cut_while_a_run_goes_on_is_named(source, tmp_path):
    data = prepare.prepare(str(source), DataConfig(cache_dir=str(tmp_path / "cache")))
    rows = data.examples("train")
    shard = next(data.parts[1].folder.glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged") as caught:
        rows[1]
    assert shard.name in str(caught.value)


def test_prepared_files_of_an_older_format_are_refused(source, tmp_path):
    data = prepare.prepare_into(tmp_path / "out", str(source), DataConfig(), prepare.PrepareOptions())
    path = data.parts[0].folder / "report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(UserError, match="format 1, this version reads 2"):
        ids(tmp_path / "out", tmp_path)


@pytest.mark.parametrize("kind", ["column", "type", "null image", "cut"])
def test_bad_files_and_rows_are_told_apart(tmp_path, kind, capsys):
    """A file that cannot be read stops with a sentence and leaves nothing; a row that cannot be used is counted."""
    rows = [hub_row(number) for number in range(4)]
    if kind == "column":
        rows = [{key: value for key, value in row.items() if key not in ("prompt", "extra_info")} for row in rows]
    if kind == "type":
        rows = [{**row, "image": 7} for row in rows]
    if kind == "null image":
        rows[2]["image"] = None
    path = write_hub(tmp_path / "hub", rows) / "stem-made" / "train-00000-of-00001.parquet"
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    status = command(tmp_path / "hub", "--out", tmp_path / "out")
    said = capsys.readouterr()
    if kind == "null image":
        assert status == 0 and "3 rows kept, 1 dropped" in said.out and "no image" in said.out and "row2" in said.out
        return
    assert status == 2 and not list((tmp_path / "out").rglob("*.array_record*"))
    if kind != "type":
        assert str(path) in said.err and said.err.count("\n") == 1
        assert not (tmp_path / "out" / "vero_600k").exists()


def test_a_full_disk_is_said_before_the_work(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda place: types.SimpleNamespace(free=10**7))
    assert command(source, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "chart_ocr-made needs about 0.07 GB" in error and "has 0.01 GB free" in error and error.count("\n") == 1


def test_a_file_that_cannot_grow_is_one_sentence_and_leaves_no_half_made_config(tmp_path):
    rows = [hub_row(number, image={"bytes": picture(200, 200), "path": None}) for number in range(20)]
    folder = write_hub(tmp_path / "hub", rows)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
    done = in_child(limit, "--source", folder, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr and "ulimit" in done.stderr and done.stderr.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert command(folder, "--out", tmp_path / "out") == 0


def test_a_disk_that_gets_full_is_one_sentence_and_leaves_no_half_made_config(tmp_path, monkeypatch, capsys):
    rows = [hub_row(number, image={"bytes": picture(200, 200), "path": None}) for number in range(60)]
    folder = write_hub(tmp_path / "hub", rows)
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small]).returncode:
        pytest.skip("only root may mount a small disk here")
    try:
        monkeypatch.setattr(making, "check_space", lambda *arguments: None)
        assert command(folder, "--out", small / "out") == 2
        error = capsys.readouterr().err
        assert "the disk is full" in error and error.count("\n") == 1
        assert not [path for path in small.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", small], check=True)


def test_no_permission_is_one_sentence():
    # Root may write everywhere, so the child becomes somebody else; pytest's own folders are closed to them.
    code = "import os, vero_jax.data.prepare\nos.getuid() or os.setuid(65534)"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        source = write_hub(place / "hub", [hub_row(0)])
        (place / "closed").mkdir(mode=0o555)
        done = in_child(code, "--source", source, "--out", place / "closed" / "out")
        assert done.returncode == 2, done.stderr
        assert "permission is denied" in done.stderr and "closed/out" in done.stderr
        assert done.stderr.count("\n") == 1
        (source / "stem-made" / "train-00000-of-00001.parquet").chmod(0)
        (place / "open").mkdir(mode=0o777)
        (place / "open").chmod(0o777)
        done = in_child(code, "--source", source, "--out", place / "open" / "out")
        assert done.returncode == 2, done.stderr
        assert "train-00000-of-00001.parquet cannot be read" in done.stderr and done.stderr.count("\n") == 1


SLOW_ROWS = (
    "import time\n"
    "from vero_jax.data import builder\n"
    "check = builder._check\n"
    "builder._check = lambda row: (time.sleep(0.15), check(row))[1]\n"
)


def test_a_killed_process_leaves_nothing_that_harms(tmp_path):
    folder = write_hub(tmp_path / "hub", [hub_row(number) for number in range(40)])
    write_hub(tmp_path / "hub", [hub_row(99)], source="a-first")
    program = f"{SLOW_ROWS}from vero_jax.data.prepare import main\nmain()"
    arguments = ["--source", str(folder), "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("out/.making-*/vero_600k/stem-made")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("out/.making-*"))
    assert os.listdir(tmp_path / "out" / "vero_600k") == ["a-first"]
    before = files_of(tmp_path / "out" / "vero_600k")
    assert command(folder, "--out", tmp_path / "out") == 0
    assert before.items() < files_of(tmp_path / "out" / "vero_600k").items()
    assert sorted(os.listdir(tmp_path / "out")) == ["report.json", "vero_600k"]
    assert len(ids(tmp_path / "out", tmp_path)) == 41


def test_of_two_processes_at_once_one_makes_the_config_and_the_other_waits(tmp_path):
    folder = write_hub(tmp_path / "hub", [hub_row(number) for number in range(30)])
    program = f"{SLOW_ROWS}from vero_jax.data.prepare import main\nraise SystemExit(main())"
    arguments = ["--source", str(folder), "--out", str(tmp_path / "out"), "--verify"]
    running = [
        subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum("preparing stem-made" in text for text in said) == 1
    assert sum("another process prepares stem-made; waiting" in text for text in said) == 1
    assert all("train: 30 rows kept" in text for text in said)
    assert sorted(os.listdir(tmp_path / "out")) == ["report.json", "vero_600k"]


def test_progress_is_told_by_config_split_and_speed(monkeypatch):
    said: list[str] = []
    progress = making.Progress("stem-made (3 of 59)", said.append, said.append)
    progress.tick("train", 64)
    assert not said, "not before there is something to tell"
    progress._said -= 20
    progress.tick("train", 128)
    assert len(said) == 1 and said[0].startswith("stem-made (3 of 59): train 128 rows, ") and "rows/s" in said[0]


def test_the_index_comes_as_a_table_without_reading_images(source, tmp_path):
    data = prepare.prepare(str(source), DataConfig(cache_dir=str(tmp_path / "cache")))
    for shard in tmp_path.rglob("*.array_record*"):
        shard.unlink()
    table = data.index_table("train", ["id", "domain", "widths"])
    assert isinstance(table, pa.Table)
    assert table["id"].to_pylist() == ["row5", "row0", "row1", "row2"]
    assert table["domain"].to_pylist() == ["chart_ocr", "stem", "stem", "stem"]
    assert data.index_table("absent", ["id"]).num_rows == 0


def test_a_row_with_half_a_surrogate_pair_is_counted(tmp_path, capsys):
    rows = [{**hub_row(number), "extra_info": json.dumps(hub_row(number)["extra_info"])} for number in range(2)]
    rows[0]["extra_info"] = rows[0]["extra_info"].replace('"Which?"', '"\\ud83d"')
    assert command(write_hub(tmp_path / "hub", rows), "--out", tmp_path / "out") == 0
    assert "1 rows kept, 1 dropped" in capsys.readouterr().out


@pytest.mark.slow
def test_a_split_larger_than_a_gigabyte_in_one_row_group_streams_through_little_memory(tmp_path):
    """TFDS's own writer would hold the split and ask for TensorFlow past 1000 MiB; pyarrow would hold the row group."""
    count = 3800
    photo = picture(620, 620, "JPEG")
    images = [photo[:-2] + os.urandom(300_000 - len(photo)) + photo[-2:] for _ in range(64)]
    assert len(photo) < 300_000
    (tmp_path / "hub" / "large").mkdir(parents=True)
    row = hub_row(0)
    names = [f"row{number}" for number in range(count)]
    columns = {
        **{name: [row[name]] * count for name in row if name not in ("id", "image")},
        "id": names,
        "image": [{"bytes": images[number % 64], "path": None} for number in range(count)],
    }
    path = tmp_path / "hub" / "large" / "train-00000-of-00001.parquet"
    options = {"use_dictionary": False, "compression": "none", "write_batch_size": 64}  # rows of a page
    pq.write_table(pa.table(columns), path, row_group_size=count, **options)
    assert path.stat().st_size > 1.1e9 and pq.ParquetFile(path).num_row_groups == 1
    del columns, images
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss of the child, which inherits that of the process that started it.
    code = (
        "import atexit\n"
        "atexit.register(lambda: print([x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')][0]))"
    )
    done = in_child(code, "--source", tmp_path / "hub", "--out", tmp_path / "out", "--verify")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 600 * 1024, f"KiB at the peak; this process had {before}"
    data = prepared.open_prepared("large", tmp_path / "out")
    assert data.count("train") == count
    rows = data.examples("train")
    assert [rows[number].id for number in (0, count // 2, count - 1)] == [names[0], names[count // 2], names[-1]]
