"""Images: their sources in the real formats, what is refused, and which batches come of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hydra.errors import HydraException

from cwd.data.digits import make_digits
from cwd.data.image_batches import Draws, evaluation_index, image_rows
from cwd.data.image_folders import read_folders
from cwd.data.images import Unreadable
from cwd.errors import UserError
from cwd.sweeps import compose_config
from cwd.training.image_sources import load_images
from tests.vision_helpers import CLASSES, encoded, picture, write_folders, write_parquet, write_tar


def imagenet(root: Path, classes: int = 3) -> object:
    words = [f"dataset.root={root}", f"dataset.classes={classes}", f"machine.data={root.parent}/data"]
    return load_images(compose_config(["task=vision", "dataset=imagenet", *words]))


def test_class_folders_are_read_as_they_lie(tmp_path: Path) -> None:
    data = read_folders("x", write_folders(tmp_path / "photos"), None)
    assert data.classes == CLASSES
    assert data.train.labels.tolist() == data.validation.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    expected = np.asarray(picture(1000 + 200 + 3), dtype=int)  # of the validation split, class 2, image 3
    found = np.asarray(data.validation.load(15), dtype=int)
    assert np.abs(found - expected).mean() < 4  # JPEG
    assert data.validation.where(15) == str(tmp_path / "photos" / "val" / "cat" / "3.jpg")


def test_a_folder_without_splits_is_divided_by_the_files_names(tmp_path: Path) -> None:
    write_folders(tmp_path, 10, ("all",))
    data = read_folders("x", tmp_path / "all", 0.2)
    names = [{one.where(i) for i in range(len(one.labels))} for one in (data.train, data.validation)]
    assert (len(names[0]), len(names[1])) == (24, 6)
    assert not names[0] & names[1]
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    (tmp_path / "all" / "ant" / "new.jpg").write_bytes(encoded(picture(9)))
    after = read_folders("x", tmp_path / "all", 0.2)
    assert after.fingerprint != data.fingerprint
    others = {after.validation.where(i) for i in range(len(after.validation.labels)) if after.validation.labels[i] != 0}
    assert others <= names[1]


def test_the_three_layouts_of_imagenet_hold_the_same_images(tmp_path: Path) -> None:
    labels = [2, 0, 1, 1, 0, 2]
    for split, short in (("train", "train"), ("validation", "val")):
        write_parquet(tmp_path / "parquet", split, labels)
        (tmp_path / "tar").mkdir(exist_ok=True)
        write_tar(tmp_path / "tar" / f"imagenet1k-{short}-0000.tar", labels)
    sets = [imagenet(tmp_path / kind).validation for kind in ("parquet", "tar", "tar")]  # type: ignore[attr-defined]
    for one in sets:
        assert one.labels.tolist() == labels
        for i in (0, 5):
            stored = np.asarray(picture(i), dtype=int)
            assert np.abs(np.asarray(one.load(i), dtype=int) - stored).mean() < 4
            assert np.array_equal(np.asarray(one.load(i)), np.asarray(sets[0].load(i)))
    write_folders(tmp_path / "folders")
    assert imagenet(tmp_path / "folders").classes == CLASSES  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["grey", "palette", "CMYK", "transparent"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, kind: str) -> None:
    mode = {"grey": "L", "palette": "P", "CMYK": "CMYK", "transparent": "RGBA"}[kind]
    folder = write_folders(tmp_path, 2)
    name = "0.jpg" if mode in ("L", "CMYK") else "0.png"
    (folder / "train" / "ant" / name).write_bytes(encoded(picture(0, mode=mode), "JPEG" if name == "0.jpg" else "PNG"))
    data = read_folders("x", folder, None)
    loaded = data.train.load(0 if name == "0.jpg" else 1)
    assert loaded.mode == "RGB"
    if mode == "L":
        assert np.ptp(np.asarray(loaded), axis=2).max() == 0


def test_a_truncated_image_says_which_file_it_is(tmp_path: Path) -> None:
    folder = write_folders(tmp_path, 2)
    bad = folder / "train" / "bee" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(Unreadable, match=r"train/bee/1.jpg: cannot be read as an image \(.*truncated"):
        read_folders("x", folder, None).train.load(3)


def break_folders(root: Path, how: str) -> Path:
    write_folders(root, 2)
    if how == "an empty class":
        for file in (root / "train" / "bee").iterdir():
            file.unlink()
    elif how == "a missing split":
        (root / "val").rename(root / "other")
    elif how == "an unknown class":
        (root / "val" / "bee").rename(root / "val" / "beee")
    elif how == "no classes":
        for folder in (root / "val").iterdir():
            folder.rename(root / folder.name)
    return root


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("an empty class", "photos/train/bee: a class folder without images"),
        ("a missing split", "has no val/ folder; allowed names are val, validation, valid"),
        ("an unknown class", r"photos/val/beee: a class that .*train does not have \(nearest: 'bee'\)"),
        ("no classes", "photos/val: has no class folders"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        imagenet(break_folders(tmp_path / "photos", how))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_shards_is_one_line(tmp_path: Path) -> None:
    root = tmp_path / "tar"
    root.mkdir()
    with pytest.raises(UserError, match="no ImageNet here; allowed are train/CLASS/"):
        imagenet(root)
    write_tar(root / "in-train-0.tar", [0, 1])
    with pytest.raises(UserError, match=r"no files \*validation\*.tar or \*val\*.tar of the validation split"):
        imagenet(root)
    write_tar(root / "in-val-0.tar", [0, 7])
    with pytest.raises(UserError, match=r"in-val-0.tar, byte \d+: label 7; allowed are 0 to 2 \(1 of 2"):
        imagenet(root)
    (root / "in-val-0.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match="cannot be read as a tar file of images"):
        imagenet(root)
    write_parquet(tmp_path / "parquet", "train", [0, 1])
    write_parquet(tmp_path / "parquet", "validation", [-1, -1])
    with pytest.raises(UserError, match=r"validation split, row 0 \(validation_0.JPEG\): label -1"):
        imagenet(tmp_path / "parquet")
    write_folders(tmp_path / "folders")
    with pytest.raises(UserError, match=r"has 3 class folders; dataset.classes=1000 are wanted"):
        imagenet(tmp_path / "folders", 1000)


def test_the_digits_are_scikit_learns_and_no_digit_is_in_both_splits() -> None:
    from sklearn.datasets import load_digits

    data = make_digits(1000, 12, 0, 2)  # without clutter a canvas holds one digit and nothing else
    known = {
        (one * (255 / 16)).round().astype(np.uint8).tobytes(): int(y)
        for one, y in zip(*load_digits(return_X_y=True), strict=True)
    }
    seen = []
    for one in (data.train, data.validation):
        assert len(one.labels) == 2 * (1000 if one is data.train else 797)
        digits = set()
        for i in range(0, len(one.labels), 7):
            canvas = np.asarray(one.load(i))[:, :, 0]
            found = [canvas[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)]
            match = [
                piece
                for piece in found
                if known.get(piece) == one.labels[i] and np.frombuffer(piece, np.uint8).sum() == canvas.sum()
            ]
            assert match
            digits.add(match[0])
        seen.append(digits)
    assert not seen[0] & seen[1]
    assert make_digits(1000, 12, 2, 2).fingerprint != data.fingerprint


def test_an_epoch_has_every_image_once_and_no_worker_or_process_is_in_it() -> None:
    draws = Draws(32)
    seen = np.concatenate([image_rows(64, draws, seed=3, step=i, batch_size=16)["index"] for i in range(4)])
    assert sorted(seen) == list(range(64))
    again = image_rows(64, draws, seed=3, step=2, batch_size=16)
    assert again["index"].tolist() == seen[32:48].tolist()
    other = image_rows(64, draws, seed=4, step=2, batch_size=16)
    assert other["index"].tolist() != again["index"].tolist()
    assert not set(again["seed"]) & set(other["seed"])


def test_repeated_images_are_never_a_pair_and_differ_in_their_draws() -> None:
    rows = image_rows(1000, Draws(32, repeats=3), seed=0, step=5, batch_size=64)
    counts = np.unique(rows["index"], return_counts=True)[1]
    assert (len(counts), sorted(set(counts))) == (22, [2, 3])
    assert (rows["index"][0::2] != rows["index"][1::2]).all()
    assert len(set(rows["seed"])) == 64


def test_the_draws_have_the_distributions_of_the_recipes() -> None:
    """Probabilities and means known in closed form, within five standard errors."""
    count = 40_000
    rows = image_rows(count, Draws(64, erase=0.25, mixup=0.8, cutmix=1.0), seed=1, step=0, batch_size=count)
    erased = rows["erase"][:, 2] > 0
    assert abs(erased.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / count)
    top, left, height, width = rows["erase"][erased].T
    assert (top + height <= 64).all()
    assert (left + width <= 64).all()
    area = height * width / 64**2
    assert area.min() > 0.01
    assert area.max() < 0.36
    pairs = rows["keep"].reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    cut = (rows["cut"] != 0).any(1)[::2]
    assert abs(cut.mean() - 0.5) < 5 * math.sqrt(0.25 / len(cut)) + 0.01  # a cut may be empty
    blended = pairs[~cut, 0]
    assert abs(blended.mean() - 0.5) < 5 * blended.std() / math.sqrt(len(blended)) + 0.01
    assert blended.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)  # of beta(0.8, 0.8)
    y0, x0, y1, x1 = rows["cut"][::2][cut].T
    np.testing.assert_allclose(pairs[cut, 0], 1 - (y1 - y0) * (x1 - x0) / 64**2, rtol=1e-6)


def test_the_evaluation_set_is_spread_over_the_split() -> None:
    assert evaluation_index(10, None).tolist() == list(range(10))
    assert evaluation_index(10, 4).tolist() == [0, 2, 5, 7]
    assert evaluation_index(3, 50).tolist() == [0, 1, 2]


def test_a_library_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwd.training.image_sources.find_spec", lambda name: None if name == "timm" else name)
    with pytest.raises(
        UserError, match=r"dataset=digits: needs timm, which is not installed; pip install '.\[vision\]'"
    ):
        load_images(compose_config(["task=vision"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset=digits"], "dataset=digits: is images, and model.family=simply is for text; add task=vision"),
        (["model=vit_s16"], "dataset=python_source: is text, and model.family=timm classifies images; add task=vision"),
        (["task=vision", "dataset=image_folder"], "dataset.root=null: name the folder of the images"),
        (["task=vision", "recipe.mixup=1", "training.batch_size=9"], "training.batch_size=9: must be even"),
        (["task=vision", "recipe.crop_scale=[1,0.5]"], "recipe.crop_scale=.*: the first must not be above the second"),
        (["task=vision", "dataset.corrupt=skip"], "dataset.corrupt|corrupt"),
        (["training.seq_len=null"], "training.seq_len: a value is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises((UserError, HydraException), match=message):
        compose_config(words)
