"""A bundle: the same bytes each time, verified elsewhere without the original runs, and what was changed is found."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from evidence_helpers import noise, write_record

from cwd.errors import UserError
from cwd.evidence import archive
from cwd.evidence.archive import MANIFEST, seal, unpack
from cwd.evidence.bundle import make_bundle
from cwd.evidence.export import export_records
from cwd.evidence.study import Study
from cwd.evidence.verify import Line, verify
from cwd.files import write_json
from cwd.runs import read_metrics
from cwd.runs.record import digest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("demo", "figure7")
TEXT = {".json", ".jsonl", ".md", ".tex", ".csv", ".txt", ".yaml", ".png", ".pdf", ""}


def write_runs(root: Path) -> Path:
    """Records of both artifacts, whose summaries are what their metrics say."""
    study = Study("laptop", root, 3)
    for name in NAMES:
        for point in study.state(name).points:
            for seed in point.seeds:
                assert point.config is not None
                training = point.config["training"]
                steps, where = training["steps"], point.coordinates
                loss = 2.0 + 0.1 * noise(seed) + 0.01 * noise(seed, where["arm"], where["optimizer"])
                ratio = {"mask_ratio": 0.5, "strict_ratio": 0.4 + 0.01 * noise(seed, where["optimizer"]), "rms_x": 0.1}
                lines = [
                    ("eval", 0, {"loss": 5.5, "accuracy": 0.01}),
                    *(("telemetry", step, {"overall": ratio}) for step in (1, steps // 2, steps)),
                    ("train", steps, {"loss": loss - 0.1, "grad_norm": 0.3, "lr": 0.001, "seconds": 7.5}),
                    ("eval", steps, {"loss": loss, "accuracy": 0.4}),
                ]
                tokens = training["batch_size"] * training["seq_len"] * steps
                values = {"loss": loss, "accuracy": 0.4, "seconds": 7.5, "tokens": tokens}
                write_record(root, point, seed, values, lambda where, seed, lines=lines: lines)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("made") / "runs")


@pytest.fixture(scope="module")
def packed(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "bundle.zip"
    make_bundle(NAMES, "laptop", runs, target, seeds=3)
    return target


@pytest.fixture
def opened(packed: Path, tmp_path: Path) -> Path:
    """The bundle as a folder, unpacked by zipfile alone."""
    with zipfile.ZipFile(packed) as file:
        file.extractall(tmp_path / "opened")
    return tmp_path / "opened"


def differing(path: Path) -> dict[str, Line]:
    return {line.name: line for line in verify(path) if not line.agrees}


def test_a_bundle_made_in_one_folder_is_verified_in_another_without_the_runs(runs: Path, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    shutil.copytree(runs, there / "runs")
    make_bundle(NAMES, "laptop", there / "runs", there / "bundle.zip", seeds=3)
    here.mkdir()
    shutil.move(there / "bundle.zip", here / "bundle.zip")
    shutil.rmtree(there)
    command = [sys.executable, str(ROOT / "scripts" / "verify.py"), "bundle.zip"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in (MANIFEST, "records", *NAMES):
        assert re.search(rf"^{name} +agrees ", done.stdout, re.MULTILINE), done.stdout
    count = len(list(runs.iterdir()))
    assert f"{count} of {count} done" in done.stdout


def test_the_same_records_give_the_same_bytes(packed: Path, runs: Path, tmp_path: Path) -> None:
    """From another folder, too, and from records that were exported."""
    study = Study("laptop", runs, 3)
    export_records([study.state(name) for name in NAMES], tmp_path / "records")
    again = tmp_path / "again.zip"
    make_bundle(NAMES, "laptop", tmp_path / "records", again, seeds=3)
    assert again.read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as file:
        names = file.namelist()
        assert names == sorted(names)
        assert {one.date_time for one in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {Path(name).suffix for name in names} <= TEXT


def test_a_reader_needs_none_of_our_code(opened: Path) -> None:
    """sha256sum checks the files; the table's mean is that of the CSV's values, which are those of the metrics."""
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", MANIFEST], cwd=opened, capture_output=True, timeout=60, check=False
    )
    assert checked.returncode == 0
    with open(opened / "artifacts" / "demo.cells.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["optimizer"], row["arm"]) == ("lion", "cautious")]
    losses = []
    for row in rows:
        lines = (opened / "records" / row["run"] / "metrics.jsonl").read_text().splitlines()
        last = [one for one in map(json.loads, lines) if one["kind"] == "eval"][-1]
        assert float(row["value"]) == last["loss"]
        losses.append(last["loss"])
    assert len(losses) == 3
    assert f"{fmean(losses):.4f}" in (opened / "artifacts" / "demo.md").read_text()
    readme = (opened / "README.txt").read_text()
    for word in ("metrics.jsonl", "demo", "sha256sum", "nats per token"):
        assert word in readme


def test_choices_made_on_tuning_seeds_come_with_their_runs(tmp_path: Path) -> None:
    """Table 10 has each arm at its own lambda, chosen on the tuning seeds of Figure 1's grid."""
    study = Study("laptop", tmp_path / "runs", 1)
    for name in ("figure1", "table10"):
        for point in study.state(name).points:
            for seed in (*point.seeds, *point.tuning_seeds) if point.config else ():
                write_record(tmp_path / "runs", point, seed, {"loss": 2 + point.coordinates["lambda"]}, None)
    there = Study("laptop", tmp_path / "runs", 1).state("table10")
    export_records([there], tmp_path / "kept")
    kept = Study("laptop", tmp_path / "kept", 1).state("table10")
    assert there.choices
    assert kept.choices == there.choices


# What was changed is found, though the manifest and the checksums were made anew


def a_run(folder: Path, name: str = "demo", index: int = 0) -> Path:
    """The record behind a cell."""
    cell = json.loads((folder / "artifacts" / f"{name}.json").read_text())["cells"][index]
    return folder / "records" / cell["runs"]["0"]


def in_metrics(record: Path, kind: str, change: Callable[[dict[str, Any]], Any], which: int = -1) -> None:
    lines = read_metrics(record / "metrics.jsonl")
    change([line for line in lines if line["kind"] == kind][which])
    (record / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def in_summary(record: Path, **values: Any) -> None:
    summary = json.loads((record / "summary.json").read_text())
    del summary["checksum"]
    summary.update(values)
    write_json(record / "summary.json", {**summary, "checksum": digest(summary)})


def in_text(path: Path, pattern: str) -> None:
    """Changes the last digit of the first number that the pattern ends in."""
    text = path.read_text()
    match = re.search(pattern, text)
    assert match is not None
    digit = "4" if match[0][-1] != "4" else "5"
    path.write_text(text[: match.end() - 1] + digit + text[match.end() :])


def final_loss(folder: Path) -> None:
    in_metrics(a_run(folder), "eval", lambda line: line.update(loss=1.5))


def summary_loss(folder: Path) -> None:
    in_summary(a_run(folder), loss=1.5)


def both(folder: Path) -> None:
    final_loss(folder)
    summary_loss(folder)


def summary_checksum(folder: Path) -> None:
    in_text(a_run(folder) / "summary.json", r'"loss": \d\.\d{3}')


def parameters(folder: Path) -> None:
    in_summary(a_run(folder), parameters=1)


def curve(folder: Path) -> None:
    in_metrics(a_run(folder, "figure7"), "telemetry", lambda line: line["overall"].update(strict_ratio=0.3), which=1)


def shown_configuration(folder: Path) -> None:
    in_text(a_run(folder) / "config.json", r'"lr": 0\.\d+')  # the first of two, in "config"


def identity(folder: Path) -> None:
    in_text(a_run(folder) / "config.json", r'(?s)"identity".*?"lr": 0\.\d+')


def lost(folder: Path) -> None:
    shutil.rmtree(a_run(folder))


def swapped(folder: Path) -> None:
    path = folder / "artifacts" / "demo.json"
    text, (one, two) = path.read_text(), (a_run(folder, index=i).name for i in (0, 1))
    path.write_text(text.replace(one, "?").replace(two, one).replace("?", two))


def verdict(folder: Path) -> None:
    path = folder / "artifacts" / "demo.json"
    text = path.read_text()
    assert '"verdict": "unresolved"' in text
    path.write_text(text.replace('"verdict": "unresolved"', '"verdict": "supported"', 1))


def invented(folder: Path) -> None:
    (folder / "artifacts" / "table99.md").write_text("| 1.0 |")


CHANGES: list[tuple[Callable[[Path], None], dict[str, str]]] = [
    (final_loss, {"records": r"loss is \d\.\d+, its metrics say 1\.5", "demo": r"in the bundle, 1\.5 recomputed"}),
    (summary_loss, {"records": r"loss is 1\.5, its metrics say \d\.\d+"}),
    (both, {"demo": r"values\.loss\.0: \d\.\d+ in the bundle, 1\.5 recomputed"}),
    (summary_checksum, {"records": "checksum"}),
    (parameters, {"records": "numbers of parameters"}),
    (curve, {"figure7": r"in the bundle, 0\.\d+ recomputed"}),
    (shown_configuration, {"records": "its config is not what its identity says"}),
    (identity, {"records": "config.json is not what the key is the hash of"}),
    (lost, {"demo": "None recomputed"}),
    (swapped, {"demo": r"runs\.0: [0-9a-f]{16} in the bundle, [0-9a-f]{16} recomputed"}),
    (verdict, {"demo": "verdict: supported in the bundle, unresolved recomputed"}),
    (invented, {"artifacts/table99.md": "no part of a bundle"}),
    (lambda folder: in_text(folder / "artifacts" / "demo.md", r"\d\.\d{4}"), {"demo": r"demo\.md: line \d+"}),
    (lambda folder: in_text(folder / "artifacts" / "demo.tex", r"\d\.\d{4}"), {"demo": r"demo\.tex: line \d+"}),
    (lambda folder: in_text(folder / "artifacts" / "demo.cells.csv", r",2\.\d{6}"), {"demo": r"csv: line 2, value"}),
    (lambda folder: in_text(folder / "artifacts" / "figure7.lines.csv", r",0\.\d{6}"), {"figure7": r"csv: line 2, y:"}),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_a_number_that_was_changed_is_found(
    opened: Path, change: Callable[[Path], None], expected: dict[str, str]
) -> None:
    change(opened)
    seal(opened)
    found = differing(opened)
    assert MANIFEST not in found
    for name, text in expected.items():
        assert re.search(text, found[name].text), found[name].text


def test_the_manifest_finds_any_change(opened: Path) -> None:
    in_metrics(a_run(opened), "train", lambda line: line.update(lr=0.5))
    (opened / "records" / "more.txt").write_text("?")
    (opened / "README.txt").unlink()
    text = differing(opened)[MANIFEST].text
    for words in ("metrics.jsonl: its content was changed", "README.txt: not in the bundle", "more.txt: not in"):
        assert words in text


def test_a_number_that_is_equal_but_for_rounding_agrees(opened: Path) -> None:
    """What another processor's last digit would do."""
    path = opened / "artifacts" / "demo.json"
    data = json.loads(path.read_text())
    data["claims"][0]["estimate"]["low"] *= 1 + 1e-12
    path.write_text(json.dumps(data))
    seal(opened)
    assert differing(opened) == {}


def test_another_definition_is_named_beside_what_differs(opened: Path) -> None:
    (opened / "configs" / "artifact" / "demo.yaml").write_text("kind: table\n")
    summary_loss(opened)
    both(opened)
    seal(opened)
    assert "made with another configs/artifact/demo.yaml" in differing(opened)["demo"].text


# Records alone


def test_a_plain_folder_of_records_is_verified(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "records")
    assert differing(tmp_path / "records") == {}
    record = next(path for path in sorted((tmp_path / "records").iterdir()))
    in_summary(record, loss=1.0)
    command = [sys.executable, str(ROOT / "scripts" / "verify.py"), str(tmp_path / "records")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert f"{record.name}: summary.json: loss is 1.0, its metrics say" in done.stdout


# Archives that are not ours


def zipped(path: Path, *members: tuple[str, bytes], link: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o644) << 16
            file.writestr(info, content)
    return path


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "a\\..\\out", "C:out", "a//out", ".git/config"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "b.zip", ("good.txt", b""), (name, b"x"))
    with pytest.raises(UserError, match="no name that a bundle may have; nothing was unpacked"):
        unpack(path, tmp_path / "deep" / "er")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.zip"]


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a link"):
        unpack(zipped(tmp_path / "b.zip", ("a", b"/etc/passwd"), link=True), tmp_path / "out")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / MANIFEST).symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        unpack(tmp_path / "folder", tmp_path / "out2")


def test_a_zip_bomb_is_refused_even_if_it_lies_about_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST", 10_000)
    bomb = zipped(tmp_path / "bomb.zip", ("a", bytes(20_000)))
    with pytest.raises(UserError, match="says that it has 20,000 bytes"):
        unpack(bomb, tmp_path / "one")
    with pytest.raises(UserError, match="more than 10,000 bytes come out"):
        unpack(zipped(tmp_path / "many.zip", ("a", bytes(6_000)), ("b", bytes(6_000))), tmp_path / "two")
    raw = bomb.read_bytes()
    start = raw.index(b"PK\x01\x02")  # in the central directory, the size is at 24
    (tmp_path / "liar.zip").write_bytes(raw[: start + 24] + (100).to_bytes(4, "little") + raw[start + 28 :])
    with pytest.raises(UserError):
        unpack(tmp_path / "liar.zip", tmp_path / "three")
    assert sum(path.stat().st_size for path in (tmp_path / "three").rglob("*")) <= 10_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_no_bundle_is_said_in_a_line(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "text.zip", "cannot be read as a zip"),
        (tmp_path / "empty", "neither a bundle"),
        (tmp_path / "nowhere", "no such file or folder"),
        (zipped(tmp_path / "other.zip", ("a.txt", b"")), "it is no bundle"),
        (zipped(tmp_path / "twice.zip", ("a", b"1"), ("a", b"2")), "a name twice"),
        (zipped(tmp_path / "m.zip", (MANIFEST, b""), ("bundle.json", b'{"format": 1}')), "says of itself"),
    ):
        with pytest.raises(UserError, match=message):
            list(verify(path))
    with pytest.raises(UserError, match="no finished run of table3 at laptop scale"):
        make_bundle(["table3"], "laptop", runs, tmp_path / "b.zip")
