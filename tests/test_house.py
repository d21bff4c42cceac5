"""Rules for the whole repository that no linter checks: circles, sizes, links."""

import ast
import graphlib
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("loldu", "eval", "trainer", "webui", "pocket", "experiments", "benchmarks")
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 400, 60, 8
LINK = re.compile(r"\]\((?!https?:|#)([^)\s#]+)(?:#([^)\s]+))?\)|\]\(#([^)\s]+)\)")


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"A circle of imports: {' imports '.join(reversed(error.args[1]))}")


def python_files() -> list[Path]:
    return sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, list[str]]]:
    for file in python_files():
        source = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.name}", node, source.splitlines()


def test_files_and_functions_are_short() -> None:
    long = [
        f"{file.relative_to(ROOT)} has {count} lines"
        for file in python_files()
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    ]
    long += [
        f"{name} has {count} lines"
        for name, node, _ in functions()
        if (count := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not long


def test_many_parameters_have_their_reason_beside_them() -> None:
    crowded = [
        name
        for name, node, lines in functions()
        if _parameters(node) > MOST_PARAMETERS and not _has_comment(node, lines)
    ]
    assert not crowded


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls", "ctx") for argument in given)


def _has_comment(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> bool:
    """Return whether there is a comment above the definition or within its head."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    head = lines[max(first - 2, 0) : node.body[0].lineno - 1]
    return any("# " in line and "# noqa" not in line for line in head)


def test_every_name_of_a_module_is_used() -> None:
    defined: dict[str, str] = {}
    for file in python_files():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
                names = [node.name]  # a decorator may register it
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            defined |= {n: f"{file.relative_to(ROOT)}:{n}" for n in names if "__" not in n}
    words: Counter[str] = Counter()
    for package in (*PACKAGES, "tests"):
        for file in (ROOT / package).rglob("*"):
            if file.suffix in (".py", ".toml", ".yaml"):
                words.update(re.findall(r"\w+", file.read_text(encoding="utf-8")))
    assert not [where for name, where in defined.items() if words[name] == 1]


def test_lowest_versions_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    for needed in [*project["dependencies"], *chain(*extras)]:
        name, lowest = re.sub(r"\[.*\]", "", needed).split(">=")
        assert f"{pinned[name]}.".startswith(f"{lowest}."), needed


def test_the_folder_of_data_is_no_package() -> None:
    # It would hide the library `datasets`.
    assert not list((ROOT / "datasets").rglob("*.py"))


@pytest.mark.parametrize(
    "page",
    [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted(ROOT.glob("*/README.md")),
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    dead = []
    for path, section, own_section in LINK.findall(text):
        target = page.parent / path if path else page
        section = section or own_section
        if not target.exists():
            dead.append(path)
        elif section and section not in _sections(target):
            dead.append(f"{path}#{section}")
    assert not dead


def test_a_long_page_begins_with_its_contents() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    long = {page: text for page, text in texts.items() if text.count("\n") > 250}
    assert not [page for page, text in long.items() if "](#" not in text[:4000]]


def _sections(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}
