"""The benchmarks: exact prompts from the hub's columns, scoring, and permission to run code."""

from collections.abc import Sequence
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from experiments import data
from experiments.bases.tasks.instructions import evaluation
from experiments.config import read_experiment
from experiments.data import entry
from experiments.kinds.instruct.alpaca import prompt
from experiments.kinds.instruct.harness import BENCHMARKS, FOLDER, check_tasks, evaluate
from loldu.errors import LoLDUError

pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports


def _mmlu_rows(subject: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject,
            "question": f"{subject} {i}?",
            "choices": [f"{letter}{i}" for letter in "wxyz"],
            "answer": i % 4,
        }
        for i in range(count)
    ]


def _drop_row(passage: str, question: str, *spans: str) -> dict[str, Any]:
    return {
        "passage": f"{passage} ",
        "question": question,
        "answers_spans": {"spans": list(spans), "types": ["span"] * len(spans)},
    }


STAND_INS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "mmlu": {
        "dev": _mmlu_rows("high_school_art", 6) + _mmlu_rows("law", 5),
        "test": _mmlu_rows("law", 1) + _mmlu_rows("high_school_art", 2),
    },
    "drop": {
        "validation": [
            _drop_row("P1.", "Q1?", "seven"),
            _drop_row("P2.", "Q2?", "one", "two"),
            _drop_row("P3.", "Q3?", "3", "3"),
            _drop_row("P4.", "Q4?", "Rome"),
            _drop_row("P5.", "Q5?", "55"),
            _drop_row("P4.", "Q6?", "66"),
        ]
    },
    "bbh": {
        kind: [{"input": f"{kind} {i}", "target": f"({i})"} for i in range(count)]
        for kind, count in (("navigate", 4), ("word_sorting", 6))
    },
    "humaneval": {
        "test": [
            {
                "prompt": 'def one(x):\n    """Gives x."""\n',
                "canonical_solution": "    return x\n",
                "test": "def check(candidate):\n    assert candidate(3) == 3",
                "entry_point": "one",
            }
        ]
    },
}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(name: str) -> DatasetDict:
        splits = STAND_INS[name]
        for split, rows in splits.items():
            assert set(rows[0]) == set(entry(name).columns), name
            assert split in entry(name).splits, name
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    monkeypatch.setattr(data, "load_data", load_data)


class Scripted:
    """Stand-in for a model: records the prompts and returns scripted answers."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers, self.prompts, self.options = answers, [], []

    def __call__(self, **_: object) -> Any:  # noqa: ANN401
        from lm_eval.api.model import LM

        script = self

        class Model(LM):
            def generate_until(self, requests: list[Any]) -> list[str]:  # type: ignore[override]
                script.prompts = [request.args[0] for request in requests]
                script.options = [request.args[1] for request in requests]
                return list(script.answers)

            def loglikelihood(self, requests: Any) -> Any:  # type: ignore[override]  # noqa: ANN401
                raise NotImplementedError

            loglikelihood_rolling = loglikelihood

        return Model()


@pytest.mark.parametrize("name", ["mmlu", "drop"])
def test_a_model_answers_the_same_alone_and_in_a_batch(name: str) -> None:
    """Run lm-eval on the embedded base: prompts are padded on the left, answers cut at the line."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = "experiments/bases/weights/llama"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    answers_of: list[list[str]] = []
    generate = model.generate

    def kept(*args: Any, **options: Any) -> Any:  # noqa: ANN401
        made = generate(*args, **options)
        start = options["input_ids"].shape[1] if "input_ids" in options else args[0].shape[1]
        answers_of[-1] += tokenizer.batch_decode(made[:, start:], skip_special_tokens=True)
        return made

    model.generate = kept
    for batch_size in (1, 4):
        answers_of.append([])
        evaluate(
            model,
            tokenizer,
            name,
            tasks="pocket",
            data="pocket-instructions",
            batch_size=batch_size,
            seed=0,
            limit=8,
        )
    alone, batched = ([text.split("\n")[0].strip() for text in texts] for texts in answers_of)
    assert sorted(alone) == sorted(batched)
    assert any(alone)


def _ask(monkeypatch: pytest.MonkeyPatch, tasks: str, name: str, answers: Sequence[str]) -> Any:  # noqa: ANN401
    from lm_eval.models import huggingface

    script = Scripted(answers)
    monkeypatch.setattr(huggingface, "HFLM", script)
    nothing: Any = None
    score = evaluate(
        nothing, nothing, name, tasks=tasks, data="pocket-instructions", batch_size=2, seed=0
    )
    return score, script


@pytest.mark.usefixtures("stand_ins")
def test_mmlu_asks_after_five_examples_of_the_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    score, script = _ask(monkeypatch, "instructeval", "mmlu", [" A. for", "A", "C"])
    assert score == pytest.approx(200 / 3)
    shots = "".join(
        f"high_school_art {i}?\nA. w{i}\nB. x{i}\nC. y{i}\nD. z{i}\nAnswer: {'ABCDA'[i]}\n\n"
        for i in range(5)
    )
    assert script.prompts[2] == (
        "The following are multiple choice questions (with answers) about  high school art.\n\n"
        f"{shots}high_school_art 1?\nA. w1\nB. x1\nC. y1\nD. z1\nAnswer:"
    )
    assert script.options[0]["max_gen_toks"] == 2


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("name", ["mmlu", "drop", "bbh"])
def test_an_answer_may_begin_with_an_empty_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """INSTRUCTEVAL stops after a number of tokens, never at a string."""
    count = {"mmlu": 3, "drop": 1, "bbh": 4}[name]
    _, script = _ask(monkeypatch, "instructeval", name, ["\n\nA"] * count)
    assert all(not options["until"] for options in script.options)


@pytest.mark.usefixtures("stand_ins")
def test_drop_has_other_texts_than_its_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the five rows with one answer, Python takes the 4th, the 5th and the 1st with seed 0.
    _, script = _ask(monkeypatch, "instructeval", "drop", ["7"])
    assert script.prompts == [
        "P5. Q5?\nAnswer: 55\n\nP4. Q6?\nAnswer: 66\n\nP1. Q1?\nAnswer: seven\n\nP3. Q3?\nAnswer:"
    ]
    assert _ask(monkeypatch, "instructeval", "drop", [" 3 or so"])[0] == 100


@pytest.mark.usefixtures("stand_ins")
def test_every_kind_of_bbh_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["(3)", "(3", " (4) as", "no"]
    score, script = _ask(monkeypatch, "instructeval", "bbh", answers)
    assert score == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert script.prompts[0] == (
        "navigate 0\nAnswer: (0)\n\nnavigate 1\nAnswer: (1)\n\nnavigate 2\nAnswer: (2)\n\n"
        "navigate 3\nAnswer:"
    )
    assert len(script.prompts) == 4


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("    return x\n\nprint(one('?'))", 100),
        ("   return x", 100),  # an odd indent, as LLaMA's tokenizer leaves it
        ("\n    return x", 100),
        ("    return x + 1", 0),
        ("    raise SystemExit(0)", 0),
    ],
)
def test_humaneval_runs_the_first_function(
    answer: str, score: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    found, script = _ask(monkeypatch, "instructeval", "humaneval", [answer])
    assert found == score
    assert script.prompts == [
        "Please complete the following Python code without providing any additional tasks such as "
        'testing or explanations\ndef one(x):\n    """Gives x."""\n'
    ]
    assert script.options[0]["temperature"] == 0.1
    assert script.options[0]["do_sample"] is True


@pytest.mark.parametrize("name", BENCHMARKS)
def test_evaluations_of_the_pocket_world_have_the_prompt_of_training(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(evaluation(name))
    answers = [row["output"] if i % 4 else "a nonsense" for i, row in enumerate(rows)]
    score, script = _ask(monkeypatch, "pocket", name, answers)
    assert score == pytest.approx(75, abs=1)
    assert script.prompts == [prompt(row["instruction"], row["input"]) for row in rows]


def test_another_program_with_the_same_results_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(evaluation("humaneval"))
    answers = [f" reverse | reverse | {row['output']}" for row in rows]
    assert _ask(monkeypatch, "pocket", "humaneval", answers)[0] == 100


def test_code_runs_only_with_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    check_tasks("pocket")
    for tasks in ("instructeval", "stock"):
        with pytest.raises(LoLDUError, match="set HF_ALLOW_CODE_EVAL=1 to allow it"):
            check_tasks(tasks)
    with pytest.raises(LoLDUError, match="no tasks stok: choose from instructeval, pocket, st"):
        check_tasks("stok")
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    check_tasks("instructeval")


def test_every_benchmark_has_its_files_and_a_column() -> None:
    assert read_experiment("instruct").columns == BENCHMARKS
    assert len(entry("bbh").splits) == 27
    for folder in ("instructeval", "pocket"):
        assert {f.stem for f in (FOLDER / folder).glob("*.yaml")} == set(BENCHMARKS)


@pytest.mark.slow
def test_the_stock_tasks_exist() -> None:
    from lm_eval.tasks import TaskManager

    from experiments.kinds.instruct.harness import _STOCK

    known = TaskManager()
    assert {stock.task for stock in _STOCK.values()} <= {
        *known.all_tasks,
        *known.all_groups,
    }
