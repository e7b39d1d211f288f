"""Where a published corpus is: which files of which repository, or of a local folder that holds some of them."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.data.corpora import SPLITS
from cwd.errors import UserError
from cwd.files import sha256_of


@dataclass(frozen=True)
class Published:
    """A corpus as its authors publish it; see configs/dataset/ for each.

    Args:
        name: what messages and folders call it. repository, revision: of a dataset on the Hugging Face hub.
        train, validation: globs of file names in the repository; no `validation`: documents are held out of train.
        urls: a file of the repository that lists the files elsewhere, one URL a line; `train` then matches their paths.
        field: the key or column that holds the text.
        shards: how many training files to use, evenly spread over the list; None: all.
    """

    name: str
    repository: str
    revision: str
    train: str
    validation: str | None = None
    urls: str | None = None
    field: str = "text"
    shards: int | None = None

    def spec(self) -> dict[str, Any]:
        """What says which text this is."""
        return vars(self)


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus: `name` in its repository, bytes and SHA-256 where they are known, and where to get it: a
    path, a URL, or nothing for the hub.
    """

    split: str
    name: str
    size: int | None
    sha256: str | None
    place: str | None


def local_files(corpus: Published, folder: str) -> list[SourceFile]:
    """The corpus's files below a local folder, laid out as in the repository or all in one place.

    Raises:
        UserError: no such folder, or none of the corpus's files in it.
    """
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"dataset.source={folder}: no such folder")
    found = []
    for split, pattern in _patterns(corpus):
        paths = sorted(root.glob(pattern)) or sorted(root.rglob(pattern.rsplit("/", 1)[-1]))
        if not paths:
            raise UserError(f"dataset.source={folder}: holds no {split} file of {corpus.name} (looked for {pattern})")
        for path in paths:
            name = path.relative_to(root).as_posix()
            found.append(SourceFile(split, name, path.stat().st_size, None, str(path)))
    return _chosen(found, corpus)


def hub_files(corpus: Published) -> list[SourceFile]:
    """The corpus's files as the hub lists them, at the corpus's revision.

    Raises:
        UserError: the hub cannot be reached or does not have them.
    """
    if corpus.urls:
        return _chosen(_listed_elsewhere(corpus), corpus)
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    found = []
    for split, pattern in _patterns(corpus):
        with _reached(corpus):
            inside = pattern.rpartition("/")[0] or None
            entries = HfApi().list_repo_tree(
                corpus.repository, inside, revision=corpus.revision, repo_type="dataset", recursive=True
            )
            files = [one for one in entries if isinstance(one, RepoFile) and fnmatch.fnmatch(one.path, pattern)]
        if not files:
            raise UserError(f"{corpus.repository} at {corpus.revision} has no file {pattern} on the hub")
        found += [
            SourceFile(split, one.path, one.size, one.lfs.sha256 if one.lfs else None, None)
            for one in sorted(files, key=lambda one: one.path)
        ]
    return _chosen(found, corpus)


def fetch(corpus: Published, file: SourceFile, folder: Path) -> Path:
    """The local path of a file: where it is, or below `folder`, where a download goes on from where it stopped.

    Raises:
        UserError: it cannot be had, or is not what was listed.
    """
    if file.place and "://" not in file.place:
        return Path(file.place)
    with _reached(corpus):
        path = _downloaded(corpus, file, folder)
    if file.size not in (None, path.stat().st_size) or (file.sha256 and sha256_of(path) != file.sha256):
        path.unlink()
        raise UserError(f"{file.name} of {corpus.repository} came damaged; run the same command again to fetch it anew")
    return path


def discard(file: SourceFile, folder: Path) -> None:
    """Removes what `fetch` downloaded."""
    if file.place is None or "://" in file.place:
        _target(file, folder).unlink(missing_ok=True)


def _downloaded(corpus: Published, file: SourceFile, folder: Path) -> Path:
    target = _target(file, folder)
    if target.exists():
        return target
    if file.place is None:
        from huggingface_hub import hf_hub_download

        return Path(
            hf_hub_download(
                corpus.repository, file.name, revision=corpus.revision, repo_type="dataset", local_dir=folder
            )
        )
    import fsspec

    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.incomplete")
    with fsspec.open(file.place, "rb") as source, open(unfinished, "wb") as copy:
        shutil.copyfileobj(source, copy, 2**22)
    os.replace(unfinished, target)
    return target


def _target(file: SourceFile, folder: Path) -> Path:
    return folder / (file.name if file.place is None else file.place.split("://", 1)[1])


def _listed_elsewhere(corpus: Published) -> list[SourceFile]:
    """The files that a list in the repository names by URL."""
    from huggingface_hub import hf_hub_download

    assert corpus.urls is not None
    with _reached(corpus):
        path = hf_hub_download(corpus.repository, corpus.urls, revision=corpus.revision, repo_type="dataset")
        urls = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    found = [
        SourceFile(split, url.split("://", 1)[1].split("/", 1)[1], None, None, url)
        for split, pattern in _patterns(corpus)
        for url in sorted(urls)
        if fnmatch.fnmatch(url, f"*{pattern}")
    ]
    if not found:
        raise UserError(f"{corpus.urls} of {corpus.repository} names no file {corpus.train}")
    return found


def _patterns(corpus: Published) -> list[tuple[str, str]]:
    pairs = zip(SPLITS, (corpus.train, corpus.validation), strict=True)
    return [(split, pattern) for split, pattern in pairs if pattern]


def _chosen(files: list[SourceFile], corpus: Published) -> list[SourceFile]:
    """All validation files, and as many training files as asked for, evenly spread."""
    train = [file for file in files if file.split == "train"]
    wanted = corpus.shards or len(train)
    if wanted > len(train):
        raise UserError(f"dataset.shards={wanted}: {corpus.name} has only {len(train)} training files here")
    picked = [train[number * len(train) // wanted] for number in range(wanted)]
    return picked + [file for file in files if file.split == "validation"]


@contextmanager
def _reached(corpus: Published) -> Iterator[None]:
    """One line for whatever the network does."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is not None:  # of the disk
            raise
        raise UserError(_unreachable(corpus, error)) from None
    except Exception as error:  # the clients raise whatever their own dependencies raise
        raise UserError(_unreachable(corpus, error)) from None


def _unreachable(corpus: Published, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"{corpus.repository} on the Hugging Face hub: {reason}; the same command goes on later, or give local files: "
        "dataset.source=FOLDER"
    )
