"""The README's laptop results are those of the committed records."""

import re
from pathlib import Path

import pytest

from cwd.evidence.artifact_files import artifact_names, load_artifact
from cwd.evidence.report import document
from cwd.evidence.statistics import LEVEL, detectable_effect
from cwd.evidence.study import Study

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = {"the same": "lower_loss", "each arm's best": "lower_loss_own_lambda"}
PAPERS = {"338M": "338m", "986M": "986m", "2.3B": "2b"}
ROW = re.compile(r"^\| ([\d.]+M) \((\S+)\) \| (the same|each arm's best) \| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study("laptop", ROOT / "records" / "laptop")


def test_every_number_of_the_table_is_computed_from_the_records(study: Study) -> None:
    data = document(study.state("table10")).data
    assert (data["unfinished"], data["needs"]) == (0, [])
    found = {
        (claim["claim"], claim["where"].get("size"), claim["where"].get("optimizer")): claim for claim in data["claims"]
    }
    rows = ROW.findall((ROOT / "README.md").read_text())
    assert len(rows) == 5
    for _, paper, which, cells in rows:
        for optimizer, cell in zip(("adamw", "lion", "muon"), cells.split(" | "), strict=True):
            claim = found[CLAIMS[which], PAPERS[paper], optimizer]
            estimate = claim["estimate"]
            assert estimate["n"] == 5
            assert cell == f"{estimate['mean']:+.3f} [{estimate['low']:+.3f}, {estimate['high']:+.3f}]"
            assert claim["verdict"] == "unresolved"  # as the text below the table says


@pytest.mark.parametrize(
    ("artifact", "claim", "where", "verdict"),
    [
        ("figure1", "lower_at_each_lambda", {"optimizer": "lion", "lambda": 1.5}, "contradicted"),
        ("figure1", "lower_at_each_lambda", {"optimizer": "lion", "lambda": 4.5}, "supported"),
        ("figure1", "lower_at_each_lambda", {"optimizer": "muon", "lambda": 0.9}, "supported"),
        ("figure1", "best_lambda_unchanged", {"optimizer": "lion"}, "contradicted"),
        ("figure1", "best_lambda_unchanged", {"optimizer": "muon"}, "contradicted"),
        ("table2", "no_decay", {}, "supported"),
        ("figure7", "ratio_starts_at_half", {}, "supported"),
        ("figure7", "ratio_falls", {}, "supported"),
        ("figure11", "norm_above_decoupled", {}, "supported"),
        ("figure11", "norm_below_none", {}, "supported"),
        ("figure12", "lower_gradient_norm", {}, "supported"),
        ("figure13", "tensor_norms_intermediate", {}, "supported"),
        ("table3", "images_accuracy", {}, "unresolved"),
    ],
)
def test_what_the_text_calls_resolved_is(study: Study, artifact: str, claim: str, where: dict, verdict: str) -> None:
    claims = document(study.state(artifact)).data["claims"]
    matching = [one for one in claims if one["claim"] == claim and where.items() <= one["where"].items()]
    assert matching
    assert {one["verdict"] for one in matching} == {verdict}


def test_the_text_leaves_out_nothing_that_is_resolved(study: Study) -> None:
    """Neither what speaks for the paper nor what speaks against it."""
    text = (ROOT / "README.md").read_text().partition("All that is resolved")[2].partition("These sizes are not")[0]
    told = {"".join(words).lower() for words in re.findall(r"(Table|Figure) (\d+)|`make (fair)`", text)}
    judged = [name for name in artifact_names() if load_artifact(name).kind != "theory" and load_artifact(name).ledger]
    resolved = {
        name for name in judged if {one.verdict for one in study.state(name).findings} & {"supported", "contradicted"}
    }
    assert told - {"table10"} == resolved  # Table 10 is named for what it leaves open


def test_what_three_and_eight_seeds_of_table_10_resolve(study: Study) -> None:
    count = len(study.state("table10").findings)
    three, eight = (detectable_effect(1.0, seeds, LEVEL / count) for seeds in (3, 8))
    said = f"the {count} comparisons of Table 10 that is {three:.1f} standard deviations; with eight, {eight:.1f}."
    assert said in " ".join((ROOT / "docs" / "plan.md").read_text().split())
