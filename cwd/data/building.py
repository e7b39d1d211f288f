"""Preparing a published corpus: every file to its shards, in parallel, resumable, then one rename to its folder.

<folder>.part/   what is being filled; a preparation that was killed goes on from it
<folder>.lock    held meanwhile, with <folder>.lock.<n>: see cwd.lock
<folder>/        *.bin, manifest.json, the tokenizer's files; parts/ says what each source file gave, for repairs
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.data.corpora import SPLITS
from cwd.data.packing import SAVE_SECONDS, Part, batches, is_held_out
from cwd.data.pool import Counts, pack_all, processors
from cwd.data.prepare import make_root
from cwd.data.published import SourceFile, fetch, hub_files, local_files
from cwd.data.reading import Records
from cwd.data.sets import Request, open_set
from cwd.data.tokenizers import TRAINED, Tokenizer, load_tokenizer, open_tokenizer
from cwd.data.tokens import CHECKED, FORMAT, TokenData, checksum, dtype_for, locked, write_manifest
from cwd.errors import UserError
from cwd.files import read_json, sync, write_json

SAMPLE = 2_000_000  # characters tokenised to tell size and time
PLAN, SAMPLED = "parts/plan.json", "sample.json"
TRAINING_TEXT = 500_000_000  # characters that a vocabulary is trained on
Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Estimate:
    """What a sample says of the whole: bytes of the source, tokens, bytes of the shards, seconds."""

    source: int
    tokens: int
    disk: int
    seconds: float


def prepare_set(
    request: Request,
    *,
    source: str | None,
    processes: int | None,
    say: Callable[[str], None],
    show: Show,
    save_seconds: float = SAVE_SECONDS,
) -> TokenData:
    """The set, found when it is there and whole, made or mended when not. Safe to call from many processes.

    Args:
        source: a local folder with the corpus's files; None: the Hugging Face hub.
        processes: how many at once; None: one for each processor. The result does not depend on it.
        say: called with one line for each thing worth telling. show: with bytes of the source done, and in all.

    Raises:
        UserError: the source, the tokenizer or the folder is not usable. What was done is kept.
    """
    folder = request.folder
    make_root(folder.parent)
    with locked(folder.with_name(f"{folder.name}.lock"), say) as lock:
        data, damage = open_set(request)
        if data is not None:
            return data
        files = local_files(request.corpus, source) if source else hub_files(request.corpus)
        work = folder.with_name(f"{folder.name}.part")
        if damage:
            say(f"data: {damage}; making it again from the source")
            os.rename(folder, work)
            (work / "manifest.json").unlink(missing_ok=True)
        parts = _parts(request, files, work, save_seconds)
        tokenizer = _begin(request, files, parts, say)
        count = min(processes or processors(), len(parts))
        estimate = _announce(parts, tokenizer, count, say)
        counts = pack_all(parts, request.tokenizer, work, count, _Total(parts, estimate.source, show))
        lock.confirm()
        _finish(request, files, parts, counts, tokenizer, work)
        os.rename(work, folder)
        sync(folder.parent)
    data, damage = open_set(request)
    if data is None:  # a disk that loses data should say so here and not in a loss curve
        raise UserError(f"{damage} right after it was written; check the disk")
    return data


def _parts(request: Request, files: list[SourceFile], work: Path, save_seconds: float) -> list[Part]:
    return [
        Part(request.corpus, file, number, request.held_out, work, save_seconds)
        for split in SPLITS
        for number, file in enumerate(file for file in files if file.split == split)
    ]


def _begin(request: Request, files: list[SourceFile], parts: list[Part], say: Callable[[str], None]) -> Tokenizer:
    """The tokenizer, saved in the folder that is filled, which must have been begun with the same files if it was."""
    work = parts[0].work
    (work / PLAN).parent.mkdir(parents=True, exist_ok=True)
    plan = {"key": request.key, "files": [[file.split, file.name, file.size] for file in files]}
    begun = read_json(work / PLAN)
    if begun is not None and begun["plan"] != plan:
        then, now = begun["plan"]["files"], plan["files"]
        changed = next((name for _, name, _ in [one for one in [*then, *now] if one not in then or one not in now]), "")
        raise UserError(
            f"{work} was begun from {len(then)} files, and they are not the {len(now)} of now ({changed}); bring the "
            "source back to what it was, or remove that folder to begin again"
        )
    if begun is not None and request.tokenizer in TRAINED:
        with suppress(UserError):  # it is damaged: trained again
            tokenizer = open_tokenizer(request.tokenizer, work)
            if tokenizer.fingerprint() == begun["tokenizer"]:
                return tokenizer
    texts = _training_text(request, parts) if request.tokenizer in TRAINED else None
    if texts is not None:
        say(f"data: training {request.tokenizer} with {request.vocab_size} ids on the first texts")
    tokenizer = load_tokenizer(
        request.tokenizer, request.vocab_size, texts, file=request.tokenizer_file, folder=request.root
    )
    if begun is not None and begun["tokenizer"] != tokenizer.fingerprint():
        raise UserError(f"{work} was begun with another {request.tokenizer}; remove that folder to begin again")
    tokenizer.save(work)
    write_json(work / PLAN, {"plan": plan, "tokenizer": tokenizer.fingerprint()})
    return tokenizer


def _training_text(request: Request, parts: list[Part]) -> Iterator[str]:
    """The first texts of the training files, in order and without those held out."""
    characters = 0
    for part in parts:
        if part.file.split != "train":
            return
        path = fetch(part.corpus, part.file, part.work / "source")
        for text in Records(path, part.corpus.field):
            if not is_held_out(text, request.held_out):
                yield text
                characters += len(text)
            if characters >= TRAINING_TEXT:
                return


def _announce(parts: list[Part], tokenizer: Tokenizer, processes: int, say: Callable[[str], None]) -> Estimate:
    """Says what is to come. Raises UserError where the disk is too small for it."""
    estimate = _estimate(parts, tokenizer, processes)
    done = sum(path.stat().st_size for path in parts[0].work.glob("*.bin"))
    free = shutil.disk_usage(parts[0].work).free
    already = f"; {size(done)} of it done" if done else ""
    say(
        f"data: {len(parts)} files, {size(estimate.source)}: about {estimate.tokens:,} tokens, {size(estimate.disk)} "
        f"of disk ({size(free)} free), {_minutes(estimate.seconds)} with {processes} processes{already}"
    )
    if estimate.disk - done > free:
        raise UserError(
            f"{parts[0].work.parent}: about {size(estimate.disk - done)} are needed and {size(free)} are free; give "
            "another place (machine.data or dataset.folder), or use less of the corpus (dataset.shards)"
        )
    return estimate


def _estimate(parts: list[Part], tokenizer: Tokenizer, processes: int) -> Estimate:
    work = parts[0].work
    sample = read_json(work / SAMPLED)
    if sample is None:  # not when going on: the file may have to be downloaded for it
        sample = _sample(parts[0], tokenizer)
        write_json(work / SAMPLED, sample)
    total = sum(one.file.size or sample["size"] for one in parts)
    tokens = sample["tokens"] * total // sample["read"]
    # The sample had every processor; so have the processes together, but for a remainder.
    share = processes * max(1, processors() // processes) / processors()
    width = int(dtype_for(tokenizer.vocab_size)[-1])
    return Estimate(total, tokens, width * tokens, sample["seconds"] * total / sample["read"] / share)


def _sample(part: Part, tokenizer: Tokenizer) -> dict[str, Any]:
    """Bytes read of the first file, the tokens that they gave, the time it took, and the size of that file."""
    path = fetch(part.corpus, part.file, part.work / "source")
    records = Records(path, part.corpus.field)
    tokens = characters = 0
    begun = time.perf_counter()
    for _, texts in batches(records):
        tokens += sum(map(len, tokenizer.encode_batch(texts)))
        characters += sum(map(len, texts))
        if characters >= SAMPLE:
            break
    seconds = time.perf_counter() - begun
    return {"read": max(records.position, 1), "tokens": tokens, "seconds": seconds, "size": path.stat().st_size}


class _Total:
    """Adds up what the parts have read."""

    def __init__(self, parts: list[Part], total: int, show: Show) -> None:
        self._read = [0] * len(parts)
        self._total, self._show = total, show

    def __call__(self, number: int, read: int) -> None:
        self._read[number] = read
        self._show(min(sum(self._read), self._total), self._total)


def _finish(
    request: Request,
    files: list[SourceFile],
    parts: list[Part],
    counts: list[Counts],
    tokenizer: Tokenizer,
    work: Path,
) -> None:
    """Writes the manifest, and leaves nothing in the folder but what it names and parts/."""
    shards: dict[str, Counts] = {split: {} for split in SPLITS}
    for part, found in zip(parts, counts, strict=True):
        for split in part.splits:
            shards[split][part.shard(split)] = found[split]
    for split in SPLITS:
        if not sum(one["tokens"] for one in shards[split].values()):
            raise UserError(f"the {split} split of {request.corpus.name} has no tokens; more files are needed")
    shutil.rmtree(work / "source", ignore_errors=True)
    left = [*(work / "parts").glob("*.lock*"), *work.rglob(".*.tmp")]  # the latter of kills in the middle of a write
    for path in [*left, *(work / name for name in (SAMPLED, CHECKED, "manifest.json"))]:
        path.unlink(missing_ok=True)
    write_manifest(work, _manifest(request, files, shards, tokenizer, work))
    for path in [*(path for path in work.iterdir() if path.is_file() and path.suffix != ".bin"), work]:
        sync(path)


def _manifest(
    request: Request, files: list[SourceFile], shards: dict[str, Counts], tokenizer: Tokenizer, work: Path
) -> dict[str, Any]:
    """What the folder holds. `shards`: of each split, by name and in order, what `pack` returned of each."""
    dtype = dtype_for(tokenizer.vocab_size)
    binary = {
        name: {"size": one["tokens"] * int(dtype[-1]), "sha256": one["sha256"]}
        for split in SPLITS
        for name, one in shards[split].items()
    }
    saved = {path.name: checksum(path) for path in sorted(work.iterdir()) if path.is_file() and path.suffix != ".bin"}
    return {
        "format": FORMAT,
        "key": request.key,
        "request": request.content,
        "source": [[file.split, file.name, file.size] for file in files],
        "tokenizer": {"spec": request.tokenizer, "fingerprint": tokenizer.fingerprint()},
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype,
        "splits": {
            split: {
                **{what: sum(one[what] for one in found.values()) for what in ("documents", "tokens", "bytes")},
                "shards": list(found),
            }
            for split, found in shards.items()
        },
        "files": {**binary, **saved},
    }


def size(count: int) -> str:
    """ "1.2 GB", "340 MB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
