"""The page of a few small runs, made once for all tests of it, and a reader of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cwd.evidence.artifact_files import artifact_names
from cwd.evidence.page.page import report_page
from cwd.evidence.study import State, Study
from cwd.runs import MetricsLog, Record
from tests.evidence_helpers import noise, paired_losses, write_state

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=2">&amp;{{ 7*7 }}'
VOID = {"meta", "link", "input", "img", "br", "hr", "line", "circle", "path"}


@dataclass(frozen=True)
class Report:
    """What the page was made from, and the page."""

    runs: Path
    states: dict[str, State]
    html: str
    diverged: str  # the key of the run with hostile texts


def make_report(folder: Path) -> Report:
    """Table 10's and Figure 9's runs on three seeds; one diverged, and its texts are hostile. And a
    check of the theory.
    """
    study = Study("laptop", folder / "runs", 3)
    write_state(study, "demo", paired_losses(-0.02), _curves)
    write_state(study, "figure9", _one_diverges, _curves)
    write_check(folder / "runs")
    again = Study("laptop", folder / "runs", 3)
    states = {name: again.state(name) for name in artifact_names()}
    gone = next(
        record
        for point in states["figure9"].points
        for cell in point.cells.values()
        if (record := cell.record) and cell.state == "diverged"
    )
    spoil(gone)
    return Report(folder / "runs", states, report_page(list(states.values())), gone.key)


def write_check(root: Path) -> None:
    """The check behind Figure 2, with a path of two points from each of two starts."""
    identity = {"theory": {"format": 1, "check": "figure2"}}
    record = Record.create(root, identity, {"fingerprint": "none"}, identity)
    log = MetricsLog(record.metrics_file)
    for step, points in enumerate([[[1.0, 2.0], [3.0, 1.0]], [[1.5, 2.5], [2.0, 2.0]]]):
        log.write("trajectory", step, decay="cautious", lr=0.1, points=points)
    log.close()
    record.finish({"check": "figure2", "runs": [{"decay": "cautious", "lr": 0.1}]}, 0)


def spoil(record: Record) -> None:
    """Puts text that means something to a browser wherever a run may have text."""
    record.set_status("diverged", 10, message=HOSTILE, traceback=f"Traceback\n{HOSTILE}")
    record.add_environment({"host": HOSTILE, "torch": "2"})


def _one_diverges(where: Mapping[str, Any], seed: int) -> dict[str, Any]:
    gone = where["size"] == "986m" and seed == 2 and where["arm"] == "cautious"
    return {"diverged": True} if gone else paired_losses(-0.02)(where, seed)


def _curves(where: Mapping[str, Any], seed: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    shift = 0.1 if where["arm"] == "cautious" else 0.0
    for step in range(0, 331, 2):
        yield "train", step, {"loss": 4 - step / 200 - shift + 0.01 * noise(seed, step), "grad_norm": 1.0}
        if step % 66 == 0:
            yield "eval", step, {"loss": 4 - step / 200 - shift, "accuracy": 0.3}


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """Itself and every element below it."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child

    def all(self, tag: str, **attributes: str) -> list[Node]:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [one for one in self if one.tag == tag and wanted.items() <= one.attributes.items()]

    def by_id(self, name: str) -> Node:
        (found,) = (one for one in self if one.attributes.get("id") == name)
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.path = [Node("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.path[-1].children.append(node)
        if tag not in VOID:
            self.path.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.path[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        closed = self.path.pop()
        assert closed.tag == tag, f"<{closed.tag}> is closed by </{tag}>"

    def handle_data(self, data: str) -> None:
        self.path[-1].children.append(data)


def parse(html: str) -> Node:
    """The page's elements; fails where one is not closed."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    (root,) = builder.path
    return root
