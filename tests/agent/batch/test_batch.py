"""``skerry-agent batch`` as a real process against a real data plane: what goes in, comes out, and is kept apart."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agent.serving.harness import Running
from skerry_agent.cli import main

from .conftest import Command, csv_of

ROWS = np.random.default_rng(5).normal(size=(500, 4)).astype("f4")


def truth(plane: Running, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.reshape(plane.score("linear", rows).json["outputs"][0]["data"], (len(rows), 3))


def errors_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(summary["errors_file"]).read_text().splitlines()]


def test_csv_in_parquet_out(batch: Command, plane: Running, tmp_path: Path) -> None:
    given, out = csv_of(tmp_path / "in.csv", ROWS), tmp_path / "out.parquet"
    summary = batch("linear", given, "--output", out, "--keep", "id", "--part-rows", "120")
    assert {key: summary[key] for key in ("model", "version", "rows", "errors", "resumed", "errors_file")} == {
        "model": "linear", "version": "1", "rows": 500, "errors": 0, "resumed": 0, "errors_file": "",
    }  # fmt: skip
    table = pq.read_table(out)
    assert table.column_names == ["row", "id", "y"]
    assert table["row"].to_pylist() == list(range(500))
    assert table["id"].to_pylist() == [f"r{number}" for number in range(500)]
    assert np.allclose(np.array(table["y"].to_pylist()), truth(plane, ROWS), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.parquet"]


@pytest.mark.parametrize("shape", ["columns", "numbered", "list", "fixed"])
def test_parquet_in_whatever_the_columns_are(shape: str, batch: Command, plane: Running, tmp_path: Path) -> None:
    stamp = pa.array([1_700_000_000_000 + n for n in range(500)], pa.timestamp("ms"))
    lists = pa.array(ROWS.tolist(), pa.list_(pa.float64()) if shape == "list" else pa.list_(pa.float32(), 4))
    columns: dict[str, Any] = {"when": stamp} | {
        "columns": {name: ROWS[:, place] for place, name in enumerate("abcd")},
        "numbered": {"other": ROWS[:, 0]} | {f"x_{place}": ROWS[:, place].astype("f8") for place in (3, 2, 1, 0)},
        "list": {"x": lists},
        "fixed": {"x": lists},
    }[shape]
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=70)
    out = tmp_path / "out.parquet"
    summary = batch("linear:1", tmp_path / "in.parquet", "--output", out, "--keep", "when", "--part-rows", "90")
    assert (summary["rows"], summary["errors"]) == (500, 0)
    table = pq.read_table(out)
    assert table["row"].to_pylist() == list(range(500))
    assert table["when"].type == pa.timestamp("ms")
    assert table["when"].to_pylist() == stamp.to_pylist()
    assert np.allclose(np.array(table["y"].to_pylist()), truth(plane, ROWS), atol=1e-6)


def test_a_folder_of_files(batch: Command, plane: Running, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    np.savez(folder / "a.npz", x=ROWS[:7], label=np.arange(7))
    np.save(folder / "deep" / "b.npy", ROWS[7])  # one row without its batch dimension
    (folder / "c.json").write_text(json.dumps({"x": ROWS[8:10].tolist()}))
    (folder / "broken.npz").write_bytes(b"PK nothing")
    (folder / "notes.txt").write_text("not for scoring")
    np.save(folder / "wide.npy", np.zeros((2, 9), "f4"))
    (folder / ".hidden.npy").write_bytes(b"")
    summary = batch("linear", folder, "--output", tmp_path / "out.parquet")
    assert (summary["rows"], summary["errors"]) == (10, 2)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["file"].to_pylist() == ["a.npz"] * 7 + ["c.json"] * 2 + ["deep/b.npy"]
    assert table["row"].to_pylist() == [*range(7), 0, 1, 0]
    expected = truth(plane, np.concatenate([ROWS[:7], ROWS[8:10], ROWS[7:8]]))
    assert np.allclose(np.array(table["y"].to_pylist()), expected, atol=1e-6)
    assert [(one["file"], one["row"], one["code"]) for one in errors_of(summary)] == [
        ("broken.npz", -1, "request.invalid"),
        ("wide.npy", -1, "scoring.wrong_shape"),
    ]


def test_rows_that_cannot_be_scored_are_kept_apart_and_all_others_are_scored(batch: Command, tmp_path: Path) -> None:
    """Unreadable cells, NaN that the model's own code refuses, a model that raises: each row says why."""
    lines = ["a,b,c,d"] + [f"{n},0,0,1" for n in range(200)]
    bad = {17: "17,oops,0,1", 63: "63,0,0", 64: "-666,0,0,1", 150: "-666,1,1,1", 199: "199,,0,1"}
    for row, text in bad.items():
        lines[row + 1] = text
    (tmp_path / "in.csv").write_text("\n".join(lines))
    summary = batch("picky", tmp_path / "in.csv", "--output", tmp_path / "out.jsonl", "--part-rows", "80")
    assert (summary["rows"], summary["errors"]) == (195, 5)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(one["row"], one["y"]) for one in found] == [(n, 2.0 * n + 2) for n in range(200) if n not in bad]
    wrong = errors_of(summary)
    assert {one["row"]: one["code"] for one in wrong} == {
        17: "scoring.bad_data", 63: "scoring.bad_data", 64: "scoring.failed", 150: "scoring.failed",
        199: "scoring.bad_data",
    }  # fmt: skip
    reasons = {one["row"]: one["reason"] for one in wrong}
    assert "oops" in reasons[17]
    assert reasons[63] == "cannot read the row: it has 3 cells, the table has 4 columns"
    assert "the devil is in the data" in reasons[64]


def test_nan_where_the_manifest_forbids_it_and_lists_of_the_wrong_length(batch: Command, tmp_path: Path) -> None:
    rows: list[Any] = ROWS[:60].tolist()
    rows[3], rows[40], rows[41], rows[42] = [0.0, float("nan"), 0.0, 0.0], [1.0], None, []
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.float64()))}), tmp_path / "in.parquet")
    summary = batch("linear", tmp_path / "in.parquet", "--output", tmp_path / "out.parquet")
    assert (summary["rows"], summary["errors"]) == (56, 4)
    assert [one["row"] for one in errors_of(summary)] == [40, 41, 42, 3]
    assert "holds NaN" in errors_of(summary)[3]["reason"]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["row"].to_pylist() == [n for n in range(60) if n not in (3, 40, 41, 42)]


def test_a_row_that_kills_costs_its_request_and_is_not_hunted(batch: Command, plane: Running, tmp_path: Path) -> None:
    lines = ["a,b,c,d"] + [f"{-777 if n == 50 else n},0,0,0" for n in range(120)]
    (tmp_path / "in.csv").write_text("\n".join(lines))
    before = len(plane.exits)
    summary = batch("picky", tmp_path / "in.csv", "--output", tmp_path / "out.csv", "--rows", "8")
    wrong = errors_of(summary)
    assert summary["rows"] + summary["errors"] == 120
    assert 1 <= len(wrong) <= 8
    assert 50 in {one["row"] for one in wrong}
    assert {one["code"] for one in wrong} == {"scoring.quarantined"}
    assert len(plane.exits) - before == 2
    with (tmp_path / "out.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    assert {int(one["row"]) for one in found} | {one["row"] for one in wrong} == set(range(120))
    assert all(float(one["y"]) == 2.0 * int(one["row"]) for one in found)


def test_csv_and_jsonl_need_no_pyarrow_and_parquet_says_what_to_install(batch: Command, tmp_path: Path) -> None:
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "pyarrow.py").write_text("raise ImportError('not here')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "hide")}
    given = csv_of(tmp_path / "in.csv", ROWS[:30])
    summary = batch("linear", given, "--output", tmp_path / "out.csv", "--columns", "a,b,c,d", env=env)
    assert summary["rows"] == 30
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["row", "y_0", "y_1", "y_2"]
    text = batch("linear", given, "--output", tmp_path / "o.parquet", "--keep", "id", env=env, code=1)
    assert "pip install 'skerry[batch]'" in text
    assert "resource.missing_dependency" in text
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("linear", "none.csv", "--output", "o.csv"), 2, "there is no such file"),
        (("linear", "in.csv", "--output", "o.txt"), 2, "must end in .parquet, .csv, .jsonl"),
        (("linear", "in.csv", "--output", "no/o.csv"), 2, "no such folder"),
        (("linear", "in.csv", "--output", "o.csv", "--keep", "zip"), 2, "cannot find the column 'zip'"),
        (("linear", "in.csv", "--output", "o.csv"), 2, "in the columns id, a, b, c, d"),
        (("nobody", "in.csv", "--output", "o.csv"), 2, "module.unknown"),
        (("linear:9", "in.csv", "--output", "o.csv"), 2, "module.unknown"),
        (("linear", "in.csv", "--output", "there.csv", "--keep", "id"), 2, "it exists"),
        (("linear", "in.txt", "--output", "o.csv"), 2, "cannot score in.txt"),
        (("linear", "in.csv", "--output", "o.csv", "--rows", "0"), 2, "below 1"),
    ],
)
def test_what_cannot_be_says_so_and_writes_nothing(
    arguments: tuple[str, ...],
    code: int,
    text: str,
    batch: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    csv_of(tmp_path / "in.csv", ROWS[:3])
    (tmp_path / "in.txt").touch()
    (tmp_path / "there.csv").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(["batch", *arguments, "--url", batch.url]) == code
    assert text in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "in.txt", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_nobody_there(batch: Command, tmp_path: Path) -> None:
    batch.url = f"unix:{tmp_path}/none.sock"
    text = batch("linear", csv_of(tmp_path / "in.csv", ROWS[:3]), "--output", tmp_path / "o.csv", code=1)
    assert "resource.agent_unreachable" in text


def test_a_terminal_gets_a_bar_and_nothing_else_does(batch: Command, tmp_path: Path) -> None:
    given = csv_of(tmp_path / "in.csv", ROWS)
    shown = batch.arguments("linear", given, "--keep", "id", "--output", tmp_path / "a.csv")
    done = subprocess.run(shown, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert "500 rows scored by linear 1" in done.stdout
    shown = batch.arguments("linear", given, "--keep", "id", "--output", tmp_path / "b.csv")
    ours, theirs = pty.openpty()
    try:
        subprocess.run(shown, stdout=subprocess.DEVNULL, stderr=theirs, timeout=60, check=True)
        drawn = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "linear 1 [########################] 100%  500 of 500 rows" in drawn
