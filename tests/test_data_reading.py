"""Published files in their real formats, read record by record; what is wrong in them is named."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from cwd.data.reading import Records
from cwd.errors import UserError
from tests.published_helpers import CORPORA, FILES, texts, write_corpus


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("start", [0, 1, 7, 13, 29, 30, 40])
def test_reading_goes_on_from_any_record(name: str, start: int, tmp_path: Path) -> None:
    write_corpus(name, tmp_path)
    file = FILES[name][2][0]
    records = Records(tmp_path / file, "text", start)
    assert list(records) == texts(file)[start:]
    assert start >= 30 or records.position == (tmp_path / file).stat().st_size


@pytest.mark.parametrize("name", CORPORA)
def test_how_far_a_file_is_read_is_known_while_it_is_read_and_after(name: str, tmp_path: Path) -> None:
    write, record, [file, *_], _ = FILES[name]
    draw = random.Random(0)
    write(tmp_path / file, (record(draw.randbytes(1000).hex()) for _ in range(3000)))
    records, size = Records(tmp_path / file, "text"), (tmp_path / file).stat().st_size
    reading = iter(records)
    for _ in range(1500):
        next(reading)
    assert records.position / size == pytest.approx(0.5, abs=0.3)
    before = records.position
    reading.close()  # type: ignore[attr-defined]
    assert records.position == before


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(line + "\n" for line in content)


GOOD = '{"text": "good", "url": "x"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"00000\.json\.gz, line 2 is not JSON"),
        ("[1]", r"line 2 is not a JSON object"),
        ('{"txt": "a"}', r"line 2 lacks the field 'text' \(nearest: 'txt'\).*set dataset\.field"),
        ('{"text": 3}', r"line 2: the field 'text' is 3"),
        ('{"text": "\\ud800"}', r"line 2: .*surrogate"),
        ("\udcff", r"line 2, byte 0 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named_with_its_file(line: str, message: str, tmp_path: Path) -> None:
    lines(tmp_path / "c4-train.00000.json.gz", GOOD, line, GOOD)
    with pytest.raises(UserError, match=message) as caught:
        list(Records(tmp_path / "c4-train.00000.json.gz", "text"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CORPORA)
def test_a_cut_or_empty_file_is_named(name: str, tmp_path: Path) -> None:
    write_corpus(name, tmp_path)
    path = tmp_path / FILES[name][2][0]
    whole = path.read_bytes()
    for kept in (len(whole) // 2, 0):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=rf"{path.name}.* (cannot be read|is empty)") as caught:
            list(Records(path, "text"))
        assert "\n" not in str(caught.value)


def test_a_parquet_file_without_the_column_is_told(tmp_path: Path) -> None:
    write_corpus("fineweb_edu", tmp_path)
    with pytest.raises(UserError, match=r"lacks the column 'texts' \(nearest: 'text'\)"):
        list(Records(tmp_path / FILES["fineweb_edu"][2][0], "texts"))
