"""Downstream evaluation: items from held-out text, lm-evaluation-harness on real runs, and what is kept of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cwd.data.export import save_for_transformers
from cwd.data.prepared import find_data
from cwd.data.tokenizers import ByteTokenizer, load_tokenizer
from cwd.errors import UserError
from cwd.evaluation.heldout import ANSWER, CHOICES, CONTEXT, make_items
from cwd.evidence.items import compare_items
from cwd.runs import Record
from cwd.runs.evaluations import evaluation_file, read_evaluation, write_evaluation
from cwd.suites import load_suite
from tests.conftest import ROOT
from tests.training_helpers import train

TEXT = "".join(
    f"def {name}_of(value, {other}):\n    total = value + {other}\n    print({name!r}, total, value)\n"
    "    return total\n\n"
    for name in ("alpha", "bravo", "delta", "gamma", "sigma", "omega", "theta", "kappa")
    for other in ("first", "other", "third", "limit", "start", "count", "index", "width")
)
TASKS = ("local_continuation", "local_identifier", "local_order")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record, Record]:
    """A folder with a run that was trained a little, and one that was not."""
    folder = tmp_path_factory.mktemp("runs")
    shape = ["model=simply_15k", "training.batch_size=16", "training.seq_len=64", "optimizer.lr=2e-2"]
    few = ["telemetry.every=0", "evaluation.every=200", "evaluation.sequences=8"]
    trained, untrained = (train(folder, *shape, *few, f"training.steps={steps}").record for steps in (200, 1))
    return folder, trained, untrained


@pytest.fixture(scope="module")
def evaluate(runs: tuple[Path, Record, Record]) -> Callable[..., dict[str, Any]]:
    """Evaluates a record on a suite."""
    pytest.importorskip("lm_eval")
    from cwd.evaluation.run import Evaluator

    def call(record: Record, suite: str = "local", say: Callable[[str], None] = print) -> dict[str, Any]:
        return Evaluator(load_suite(suite), runs[0] / "data", "cpu", 64, say).run(record)

    return call


def test_items_are_a_function_of_the_text_and_their_answer_is_what_the_text_says() -> None:
    items = make_items(TEXT)
    assert items == make_items(TEXT)
    assert tuple(items) == TASKS
    for name, found in items.items():
        assert len(found) > 20
        assert {item["label"] for item in found} == set(range(CHOICES))
        for item in found:
            choices, right = item["choices"], item["choices"][item["label"]]
            assert len(set(choices)) == CHOICES
            assert len(set(map(len, choices))) == 1, name
            assert item["context"] + right in TEXT
            assert len(item["context"]) <= CONTEXT
            assert len((item["context"] + right)[len(item["context"].rstrip()) :]) <= ANSWER
            if name == "local_order":
                assert all(sorted(one) == sorted(right) for one in choices)


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: load_tokenizer("bpe", 300, [TEXT])], ids=["bytes", "bpe"])
def test_transformers_loads_the_tokenizer_and_gives_the_same_ids(make: Callable[[], Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = [TEXT[:300], "tabs\t, \r\n, é, ☃, <0x41>, \x00, \u0100, spaces   ", " leading", ""]
    tokenizer = make()
    save_for_transformers(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert loaded.encode(text) == ids.tolist()
        assert loaded.decode(ids.tolist()) == text
    assert len(loaded) == tokenizer.vocab_size


ALONE = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
stock, ours = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(stock)("x = 1", return_tensors="pt").input_ids
print(AutoModelForCausalLM.from_pretrained(stock)(ids).logits.sum().item())
assert "cwd" not in sys.modules
try:
    AutoModelForCausalLM.from_pretrained(ours)
except ValueError as error:
    assert "simply" in str(error)
import cwd.models
ids = AutoTokenizer.from_pretrained(ours)("x = 1", return_tensors="pt").input_ids
print(AutoModelForCausalLM.from_pretrained(ours)(ids).logits.sum().item())
"""


def test_a_runs_folder_loads_by_itself_and_ours_after_one_import(
    runs: tuple[Path, Record, Record], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    stock = LlamaForCausalLM(LlamaConfig(vocab_size=256, **shape))
    stock.save_pretrained(tmp_path)
    save_for_transformers(ByteTokenizer(), tmp_path)
    ours = runs[1].folder / "model"
    words = [sys.executable, "-c", ALONE, str(tmp_path), str(ours)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([list(b"x = 1")])
    models = (stock, AutoModelForCausalLM.from_pretrained(ours))
    assert [float(line) for line in done.stdout.split()] == pytest.approx(
        [m(ids).logits.sum().item() for m in models], rel=1e-4
    )


def test_a_trained_model_is_told_from_an_untrained_one(
    runs: tuple[Path, Record, Record], evaluate: Callable[..., dict[str, Any]]
) -> None:
    _, trained, untrained = runs
    for record in (trained, untrained):
        assert set(evaluate(record)) == set(TASKS)
    found = compare_items(trained, untrained, "local", TASKS)
    assert found is not None
    assert found.items == sum(len(read_evaluation(trained, "local", task)["items"]["ids"]) for task in TASKS)  # type: ignore[index]
    assert found.low > 0


def log_likelihood(model: Any, context: bytes, answer: bytes) -> tuple[float, float]:
    """log p(answer | context) in nats, and the same for each byte of the answer; float64 sums."""
    ids = torch.tensor([list(context + answer)])
    with torch.no_grad():
        logits = model(ids).logits.double().log_softmax(-1)[0]
    places = range(len(context), len(context) + len(answer))
    total = sum(float(logits[i - 1, ids[0, i]]) for i in places)
    return total, total / len(answer)


def test_stored_scores_are_those_of_a_computation_by_hand(
    runs: tuple[Path, Record, Record], evaluate: Callable[..., dict[str, Any]]
) -> None:
    from transformers import AutoModelForCausalLM

    folder, trained, _ = runs
    model = AutoModelForCausalLM.from_pretrained(trained.folder / "model")
    data = find_data(folder / "data", trained.description["data"]["fingerprint"])
    assert data is not None
    items = make_items(data.tokenizer().decode(data.tokens("validation").tolist()))
    found = evaluate(trained)
    for task in TASKS:
        scores = found[task]["items"]
        by_hand = []
        for item in items[task][:25]:
            pairs = [(item["context"].encode(), choice.encode()) for choice in item["choices"]]
            # Rows of 64 tokens were trained on, and the harness keeps the last 65 of context and answer.
            values = [log_likelihood(model, (c + a)[-65 : len(c + a) - len(a)], a) for c, a in pairs]
            by_hand.append([float(np.argmax([value[i] for value in values]) == item["label"]) for i in (0, 1)])
        assert [list(one) for one in zip(scores["acc"][:25], scores["acc_norm"][:25], strict=True)] == by_hand
        mean, n = np.mean(scores["acc"]), len(scores["acc"])
        kept = found[task]["metrics"]["acc"]
        assert kept["value"] == pytest.approx(mean)
        assert kept["stderr"] == pytest.approx(np.std(scores["acc"], ddof=1) / np.sqrt(n))


def test_what_was_evaluated_is_found_and_what_changed_is_evaluated_again(
    runs: tuple[Path, Record, Record], evaluate: Callable[..., dict[str, Any]]
) -> None:
    _, _, record = runs
    first = evaluate(record)
    lines: list[str] = []
    assert evaluate(record, say=lines.append) == first
    assert all(line.startswith("found") for line in lines)
    for name in ("harness", "task_hashes", "task_versions", "weights"):
        assert first["local_order"][name]
    file = evaluation_file(record, "local", "local_order")
    file.write_text(file.read_text()[:-200])  # torn
    assert read_evaluation(record, "local", "local_order") is None
    lines.clear()
    again = evaluate(record, say=lines.append)
    assert [line.split()[2] for line in lines if line.startswith("done")] == ["local_order"]
    assert again["local_order"]["items"] == first["local_order"]["items"]
    weights = record.folder / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    lines.clear()
    evaluate(record, say=lines.append)
    assert sum(line.startswith("done") for line in lines) == len(TASKS)
    weights.write_bytes(content)


def own_suite(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    rows = [{"question": f"{i} + 1 =", "choices": [" 0", f" {i + 1}"], "right": 1} for i in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "plus_one",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        **more,
    }
    (folder / "plus_one.yaml").write_text(json.dumps(task))
    return folder


def test_tasks_of_the_users_own(
    runs: tuple[Path, Record, Record], evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = evaluate(runs[1], str(own_suite(tmp_path / "mine")))
    assert found["plus_one"]["metric"] == "acc_norm"
    assert len(found["plus_one"]["items"]["acc_norm"]) == 10
    assert evaluation_file(runs[1], "mine", "plus_one").is_file()


def test_a_folder_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = own_suite(tmp_path / "mine")
    file = folder / "plus_one.yaml"
    for content, reason in (
        ("task: a\nprocess_docs: !function utils.f\n", "!function would run code"),
        ("task: a\ninclude: other.yaml\n", "include: not allowed"),
        ("task: a\nclass: !!str x\n", "class: not allowed"),
        ("task: a\ndoc_to_text: \"{{''.__class__}}\"\n", "__ is not allowed"),
        ("doc_to_text: a\n", "task: a name is needed"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=r"plus_one\.yaml.*") as error:
            load_suite(str(folder))
        assert reason in str(error.value)
    with pytest.raises(UserError, match=r"suite=tabel4: no such suite \(nearest: 'table4'\)"):
        load_suite("tabel4")


def test_the_command_says_what_is_wrong_in_a_line(runs: tuple[Path, Record, Record], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")

    def call(*words: str) -> str:
        command = [
            sys.executable,
            str(ROOT / "scripts" / "evaluate.py"),
            f"--runs={runs[0] / 'runs'}",
            f"--data={tmp_path}",
        ]
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=200, env={"PYTHONPATH": str(ROOT)}
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        return done.stderr

    assert "suite=NAME: one is needed" in call("seed=0")
    assert "no finished run" in call("suite=local", "seed=7")
    assert "its text is not in" in call("suite=local", f"run={runs[1].key}")


def hub(path: str, name: str | None = None, **options: Any) -> Any:
    """What the hub would give for Table 4's tasks, in its form: a few rows."""
    from datasets import Dataset, DatasetDict

    endings = ["goes to the bank", "sleeps in a car", "is a blue stone", "sings a song"]
    arc = {"question": "What melts?", "choices": {"text": ["ice", "stone"], "label": ["A", "B"]}, "answerKey": "A"}
    letters = {"text": ["a", "b", "c", "d", "e"], "label": list("ABCDE")}
    row: dict[str, Any] = {
        "Rowan/hellaswag": {
            "activity_label": "Walking", "ctx_a": "A man walks.", "ctx_b": "he", "endings": endings, "label": "0",
        },
        "allenai/ai2_arc": arc,
        "baber/piqa": {"goal": "Open a jar", "sol1": "Turn the lid.", "sol2": "Eat the lid.", "label": 0},
        "cais/mmlu": {"question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": name},
        "tau/commonsense_qa": {"question": "Where is it?", "choices": letters, "answerKey": "B"},
    }[path]  # fmt: skip
    rows = Dataset.from_list([row] * 3)
    return DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), rows))


@pytest.mark.slow
def test_table_4s_own_suite_on_rows_in_the_hubs_form(
    runs: tuple[Path, Record, Record], evaluate: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = evaluate(runs[1], "table4")
    metrics = {task: one["metric"] for task, one in found.items()}
    normed = ("hellaswag", "arc_easy", "arc_challenge", "piqa")
    assert metrics == {**dict.fromkeys(normed, "acc_norm"), "mmlu": "acc", "commonsense_qa": "acc"}
    assert len(found["mmlu"]["items"]["ids"]) == 57 * 3
    assert len(found["mmlu"]["task_hashes"]) == 57
    assert found["mmlu"]["metrics"]["acc"]["value"] == pytest.approx(np.mean(found["mmlu"]["items"]["acc"]))
    assert {one["num_fewshot"] for one in found.values()} == {0}


def test_a_paired_comparison_of_items_is_the_stratified_formula(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    scores = {task: draw.integers(0, 2, (2, n)) for task, n in (("p", 40), ("q", 90))}
    records = [Record(tmp_path / name) for name in "ab"]
    for side, record in enumerate(records):
        record.folder.mkdir()
        for task, values in scores.items():
            ids = [f"{task}{i}" for i in range(values.shape[1])]
            items = {"ids": ids, "acc": values[side].astype(float).tolist()}
            write_evaluation(record, "s", task, {"metric": "acc", "items": items, "metrics": {}})
    found = compare_items(records[0], records[1], "s", ["p", "q"])
    gaps = [(one[0] - one[1]).astype(float) for one in scores.values()]
    error = np.sqrt(sum(gap.var(ddof=1) / gap.size for gap in gaps)) / 2
    mean = np.mean([gap.mean() for gap in gaps])
    assert found is not None
    assert [found.mean, found.low, found.high] == pytest.approx(
        [mean, mean - 1.959964 * error, mean + 1.959964 * error]
    )
    assert (found.better, found.worse) == (sum((g > 0).sum() for g in gaps), sum((g < 0).sum() for g in gaps))
    assert compare_items(records[0], Record(tmp_path / "c"), "s", ["p"]) is None
    write_evaluation(records[1], "s", "p", {"metric": "acc", "items": {"ids": ["x"], "acc": [1.0]}, "metrics": {}})
    with pytest.raises(UserError, match="their items differ"):
        compare_items(records[0], records[1], "s", ["p", "q"])
