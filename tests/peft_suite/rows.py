"""A pytest plugin: wherever PEFT's tests are parametrized with LoRA, LoLDU takes the rows' place.

A row of LoRA's is translated option by option, once for every variant below; LoRA's own row stays
as the control, so that what fails for it too is told apart. Other methods' rows are left out, and
so are tests that are not parametrized by a method.
"""

import dataclasses
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from loldu import LoLDUConfig

CONTROL = "lora"
VARIANTS: dict[str, dict[str, object]] = {
    "loldu": {},
    "complete": {"pivoting": "complete"},
    "frozen": {"train_scale": False, "diagonal_init": "uniform"},
    "svd": {"factorization": "svd"},
}
ROW = re.compile(rf"\b({'|'.join([CONTROL, *VARIANTS])})(\d+)\b")

RENAMED = {"lora_alpha": "alpha", "lora_dropout": "dropout", "init_lora_weights": "init_weights"}
OPTIONS = {field.name for field in dataclasses.fields(LoLDUConfig)}
# Options of LoRA that a row can do without, at these values.
WITHOUT = {"bias": "none"}
# Parts of a row that hold the options of several models.
NESTED = ("text_encoder", "unet")

# What LoRA's rows adapt and LoLDU does not, by the model's name in test_custom_models.py.
UNSUPPORTED = {
    "Conv1d": "convolutions of other than two dimensions",
    "Conv2dGroups": "convolutions in groups",
    "Conv2dGroups2": "convolutions in groups",
    "Conv3d": "convolutions of other than two dimensions",
    "mha": "nn.MultiheadAttention, which reads its weights without calling a layer",
}
CUSTOM = "test_name, model_id, config_cls, config_kwargs"
# Rows in the form of PEFT's, for what its rows of LoRA leave untried.
ADDED = {
    CUSTOM: [
        ("MLP all-linear LoRA", "MLP", LoraConfig, {"target_modules": "all-linear"}),
        ("MLP pattern LoRA", "MLP", LoraConfig, {"target_modules": r"lin\d", "r": 64}),
        (
            "MLP patterns LoRA",
            "MLP",
            LoraConfig,
            {
                "target_modules": ["lin0", "lin1"],
                "rank_pattern": {"lin0": 3},
                "alpha_pattern": {"lin1": 5},
            },
        ),
        ("Conv2d 1x1 LoRA", "Conv2d1x1", LoraConfig, {"target_modules": ["conv2d"]}),
    ]
}

left_out: dict[str, str] = {}
results: dict[str, dict[str, object]] = {}


class Untranslatable(Exception):
    """A row of LoRA without a counterpart for LoLDU."""


def translate_options(options: dict[str, Any]) -> dict[str, object]:
    """Return LoRA's options translated to LoLDU's.

    Raises:
        Untranslatable: One of them has no counterpart.
    """
    translated: dict[str, object] = {}
    for name, value in options.items():
        ours = RENAMED.get(name, name)
        if name == "init_lora_weights" and not isinstance(value, bool):
            raise Untranslatable(f"{name}={value!r}")
        if ours in OPTIONS:
            translated[ours] = value
        elif WITHOUT.get(name) != value:
            raise Untranslatable(name)
    return translated


def translate_part(part: Any, variant: dict[str, object]) -> Any:  # noqa: ANN401
    """Return a value of LoRA's row translated to LoLDU's."""
    if part is LoraConfig:
        return LoLDUConfig
    if type(part) is LoraConfig:
        plain = vars(LoraConfig())
        changed = {k: v for k, v in vars(part).items() if v != plain[k]}
        return LoLDUConfig(**translate_part(changed, variant))
    if isinstance(part, dict) and part.keys() == {*NESTED}:
        return {key: translate_part(value, variant) for key, value in part.items()}
    if isinstance(part, dict):
        return {**translate_options(part), **variant}
    if isinstance(part, str):
        return part.replace("LoRA", "LoLDU").replace("lora", "loldu")
    return part


def is_lora(part: object) -> bool:
    return part is LoraConfig or type(part) is LoraConfig


def reason_against(row: Sequence[object]) -> str | None:
    """Return why LoLDU cannot have a row, or None if it can."""
    for part in row:
        options: dict[str, Any] = part if isinstance(part, dict) else {}
        if type(part) is LoraConfig:
            options = vars(part)
        for name in (part, *(options.get("target_modules") or ())):
            if isinstance(name, str) and name in UNSUPPORTED:
                return UNSUPPORTED[name]
    return None


def rows_for_loldu(names: str, values: Sequence[Any]) -> list[Any] | None:
    """Return the rows that replace a parametrization, or None if it has none of LoRA."""
    rows = [
        value.values if hasattr(value, "marks") else value if isinstance(value, tuple) else (value,)
        for value in [*values, *ADDED.get(names, [])]
    ]
    if not any(is_lora(part) for row in rows for part in row):
        return None
    replaced = []
    for index, row in enumerate(rows):
        if not any(map(is_lora, row)):
            continue
        has_options = any(isinstance(part, dict | LoraConfig) for part in row)
        try:
            if reason := reason_against(row):
                raise Untranslatable(reason)
            for variant, options in VARIANTS.items():
                if has_options or not options:
                    parts = [translate_part(part, options) for part in row]
                    replaced.append(pytest.param(*parts, id=f"{variant}{index}"))
        except Untranslatable as error:
            left_out[row[0] if isinstance(row[0], str) else f"{names} {index}"] = str(error)
        else:
            replaced.append(pytest.param(*row, id=f"{CONTROL}{index}"))
    return replaced


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.own_markers
    for place, mark in enumerate(marks):
        if mark.name == "parametrize" and len(mark.args) > 1:
            rows = rows_for_loldu(mark.args[0], [*mark.args[1]])
            if rows is not None:
                marks[place] = pytest.mark.parametrize(mark.args[0], rows).mark


class AlwaysSeen(dict[str, int]):
    """Report every hub name as cached, so that PEFT's tests stay offline."""

    def __contains__(self, _: object) -> bool:
        return True

    def __missing__(self, _: str) -> int:
        return 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    expected = tomllib.loads(Path(__file__).with_name("expected.toml").read_text())["test"]
    kept, others = [], []
    for item in items:
        variants = {variant for variant, _ in ROW.findall(item.nodeid)}
        (kept if len(variants) == 1 else others).append(item)
        if variants.isdisjoint(VARIANTS):
            continue
        for entry in expected:
            if re.search(entry["test"], item.nodeid):
                reason = " ".join(entry["reason"].split())
                item.add_marker(pytest.mark.xfail(reason=reason, strict=entry["strict"]))
    config.hook.pytest_deselected(items=others)
    items[:] = kept
    for name, module in sys.modules.items():
        if name.endswith("testing_utils") and hasattr(module, "_HUB_MODEL_ACCESSES"):
            module._HUB_MODEL_ACCESSES = AlwaysSeen()


def pytest_runtest_setup() -> None:
    """Seed the base models, which some of PEFT's tests leave to chance."""
    torch.manual_seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    outcome, reason = report.outcome, ""
    if hasattr(report, "wasxfail") and report.skipped:
        outcome, reason = "expected", report.wasxfail
    elif report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message.splitlines()[0] if crash else str(report.longrepr)
    results[report.nodeid] = {"outcome": outcome, "reason": reason, "s": report.duration}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loldu-results", type=Path, help="where to write outcomes as JSON")


def pytest_sessionfinish(session: pytest.Session) -> None:
    file: Path | None = session.config.getoption("--loldu-results")
    if file is not None:
        file.write_text(json.dumps({"left_out": left_out, "results": results}, indent=1))
