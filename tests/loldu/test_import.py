"""`import loldu` is quick, and PEFT knows LoLDU whichever of the two is imported first."""

import ast
import inspect
import subprocess
import sys

import pytest

import loldu


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_loads_neither_torch_nor_peft() -> None:
    run_python(
        "import sys, loldu; "
        "assert not {'torch', 'peft', 'numpy', 'transformers', 'diffusers'} & {*sys.modules}; "
        "assert loldu.__version__ and 'LoLDUConfig' in dir(loldu)"
    )


REGISTERED = (
    "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs;"
    "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as tuners;"
    "from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as prefixes;"
    "import loldu;"
    "assert configs['LOLDU'] is loldu.LoLDUConfig;"
    "assert tuners['LOLDU'] is loldu.LoLDUModel;"
    "assert prefixes['LOLDU'] == 'loldu_'"
)


@pytest.mark.parametrize(
    "imports",
    [
        "import peft, loldu",
        # transformers and diffusers look PEFT up in this way before they import it.
        "import loldu; from importlib.util import find_spec; find_spec('peft'); import peft",
        pytest.param("from loldu import LoLDUConfig", marks=pytest.mark.slow),
    ],
)
def test_peft_registers_loldu_in_any_order_of_imports(imports: str) -> None:
    run_python(f"{imports}; {REGISTERED}")


def test_every_public_name_is_there() -> None:
    for name in loldu.__all__:
        assert getattr(loldu, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lora'"):
        loldu.lora  # noqa: B018
    [for_types] = [n for n in ast.parse(inspect.getsource(loldu)).body if isinstance(n, ast.If)]
    imported = [
        (line.module, alias.name)
        for line in for_types.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    ]
    lazy = [(f"loldu.{module}", name) for module, names in loldu._NAMES.items() for name in names]
    assert lazy == imported
    assert {name for _, name in lazy} == {*loldu.__all__} - {"ConceptError"}
