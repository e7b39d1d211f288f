"""Pages of docs/ as a reader follows them: files are made and changed as a page says, and its commands are run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TREE = ("cwd", "configs", "scripts", "tests", "docs", "train.py", "Makefile", "pyproject.toml", "requirements.lock")
FENCE = re.compile(r"(?:^(?P<label>[^\n]+):\n\n)?^```(?P<language>\w*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
LONGEST = 1200  # seconds of a command: on a busy machine all takes many times as long
SHELL = ("sh", "text", "")  # languages of blocks that may hold commands
COMMAND = re.compile(r"\$?\s*([A-Z_]+=\S+ )*(python|make|pip|torchrun|accelerate|ray|sbatch|docker|git|bash) ")
LABEL = re.compile(r"(New file|At the end of|In) `([^`]+)`(?:, (after|before) the line `([^`]+)`)?$")


class Block(NamedTuple):
    """A block of a page: what it is in, its text, and where it goes if the line above it says so."""

    language: str
    text: str
    file: str | None = None
    where: str | None = None  # New file, At the end of, after, before
    line: str | None = None


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order."""
    found = []
    for match in FENCE.finditer(page.read_text()):
        label = LABEL.search(match["label"] or "")
        place = (label[2], label[3] or label[1], label[4]) if label else (None, None, None)
        found.append(Block(match["language"], match["text"], *place))
    return found


def commands_of(text: str) -> list[str]:
    """The commands of a block of shell lines. What stands behind two spaces explains; a line that ends in a backslash
    goes on in the next.
    """
    lines = [re.sub(r"\s{2,}.*$|\s+#\s.*$", "", line) for line in re.sub(r"\\\n\s*", "", text).splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def all_commands(page: Path) -> list[str]:
    """Every command that a page shows, in a block or in a line of text, in order."""
    text = page.read_text()
    shown = [line for block in blocks_of(page) if block.language in SHELL for line in commands_of(block.text)]
    inline = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    return [command for command in [*shown, *inline] if COMMAND.match(command)]


class Reader:
    """A copy of the tree in the empty `folder`, in which a page is followed; prepared text goes to `data`."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        data.mkdir(exist_ok=True)
        for name, place in (("data", data), ("records", ROOT / "records")):
            (folder / name).symlink_to(place)
        for name in TREE:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        self._set_up()

    def _set_up(self) -> None:
        """A .venv as make would have made it: this Python's packages, and the stamps."""
        venv = self.folder / ".venv"
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        for name in ("train", "finetune", "vision", "dev"):
            (venv / f"{name}.stamp").touch()

    def follow(self, page: Path) -> str:
        """Does what the page says, block by block; returns what its commands printed."""
        printed = ""
        for block in blocks_of(page):
            if block.file:
                self.write(block)
            elif block.language == "sh":
                printed += "".join(self.run(command) for command in commands_of(block.text))
        return printed

    def write(self, block: Block) -> None:
        """Makes or changes the file that a block is for."""
        assert block.file is not None
        path = self.folder / block.file
        if block.where == "New file":
            assert not path.exists(), f"{block.file} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            return
        text = path.read_text()
        if block.where == "At the end of":
            path.write_text(text + ("\n\n" if path.suffix == ".py" else "") + block.text)
            return
        lines = text.splitlines(keepends=True)
        [number] = [i for i, line in enumerate(lines) if line.strip() == block.line]
        number += block.where == "after"
        path.write_text("".join([*lines[:number], block.text, *lines[number:]]))

    def run(self, command: str) -> str:
        """Runs a command in the copy; returns what it printed. Fails with that if the command fails."""
        names = ("HYDRA_FULL_ERROR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        environment["PATH"] = f"{self.folder}/.venv/bin{os.pathsep}{environment['PATH']}"
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=LONGEST)
        finally:
            with suppress(ProcessLookupError):  # a sweep's workers outlive a command that is cut off
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, f"{command}\n{printed}"
        return printed
