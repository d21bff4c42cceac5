"""Run diffusers' own LoRA tests of Stable Diffusion's pipeline, with LoLDU in LoRA's place.

``python -m tests.diffusers_suite``. The tests are fetched with git, for the installed version, or
read from a checkout (``--source``). Nothing of theirs is edited: this file is also the test module
that pytest runs. Every test runs with LoRA too, as the control. `EXPECTED` lists the tests that
LoLDU cannot pass, each with its reason; such a test that passes is a failure.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# Their tests are the package `tests`, as ours are, so they are imported under another name.
PACKAGE = "diffusers_tests"
ADDRESS = "https://github.com/huggingface/diffusers"
TOKENIZER = Path(__file__).parents[1] / "pocket" / "base" / "tokenizer"
RENAMED = {"lora_alpha": "alpha", "init_lora_weights": "init_weights"}

READS_LORA_ALONE = "`load_lora_weights` reads the names of LoRA's weights alone"
EXPECTED = {
    "test_low_cpu_mem_usage_with_loading": READS_LORA_ALONE,
    "test_simple_inference_with_text_lora_save_load": READS_LORA_ALONE,
    "test_simple_inference_with_partial_text_lora": READS_LORA_ALONE,
    "test_simple_inference_with_text_denoiser_lora_save_load": READS_LORA_ALONE,
    "test_set_adapters_match_attention_kwargs": READS_LORA_ALONE,
    "test_lora_adapter_metadata_save_load_inference": READS_LORA_ALONE,
    "test_inference_load_delete_load_adapters": READS_LORA_ALONE,
    "test_simple_inference_with_text_denoiser_lora_and_scale": "it reads LoRA's own `scaling`",
}


def fetch(folder: Path) -> Path:
    """Return a checkout of the installed version; clone a missing one."""
    version = metadata.version("diffusers")
    checkout = folder / f"diffusers-{version}"
    if not checkout.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            clone = ["git", "clone", "--quiet", "--depth=1", f"--branch=v{version}", ADDRESS]
            if subprocess.run([*clone, f"{work}/checkout"], check=False).returncode:
                raise SystemExit(f"{ADDRESS} has no v{version} here: give --source a checkout.")
            os.replace(f"{work}/checkout", checkout)
    return checkout


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.diffusers_suite", description=__doc__)
    parser.add_argument("--source", type=Path, help="a checkout of diffusers")
    parser.add_argument("--folder", type=Path, default=Path("runs/diffusers_suite"))
    parser.add_argument("-k", dest="keyword", default="", help="run the tests this matches")
    options = parser.parse_args()
    checkout = (options.source or fetch(options.folder)).resolve()
    if not (checkout / "tests" / "pipelines" / "testing_utils" / "lora.py").is_file():
        raise SystemExit(f"{checkout} has no tests/pipelines/testing_utils/lora.py.")
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / PACKAGE).symlink_to(checkout / "tests", target_is_directory=True)
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([work, str(Path(__file__).parents[1])]),
        }
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", work, "-q"]
        command += ["-p", "no:cacheprovider", "--disable-warnings", "--tb=line", "-r", "sxXf"]
        command += ["--import-mode=importlib", "--show-capture=no", "-k", options.keyword]
        ran = subprocess.run([*command, __file__], env=environment, cwd=work, check=False)
    sys.exit(ran.returncode)


def _their(name: str) -> Any:  # noqa: ANN401
    return importlib.import_module(f"{PACKAGE}.pipelines.{name}")


def _config(**options: Any) -> Any:  # noqa: ANN401
    """Return LoLDU's configuration for options of LoRA's."""
    from loldu import LoLDUConfig

    return LoLDUConfig(**{RENAMED.get(name, name): value for name, value in options.items()})


def _tests() -> tuple[type, type]:
    """Return the test classes: of LoRA, the control, and of LoLDU."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    mixins = _their("testing_utils.lora")
    theirs = _their("stable_diffusion.test_stable_diffusion").StableDiffusionPipelineTesterConfig
    mixed = (theirs, mixins.LoraTesterMixin, mixins.UNetLoraTesterMixin)

    def get_dummy_components(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Replace the tokenizer of the hub by the embedded base's, with a text encoder for it."""
        tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
        with mock.patch.object(CLIPTokenizer, "from_pretrained", return_value=tokenizer):
            parts = theirs.get_dummy_components(self, *args, **kwargs)
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=parts["unet"].config.cross_attention_dim,
            intermediate_size=16,
            num_attention_heads=2,
            num_hidden_layers=6,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return parts | {"text_encoder": CLIPTextModel(config)}

    @pytest.fixture(autouse=True)
    def loldu(_: object, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the tests build LoLDU's configuration where they ask for LoRA's."""
        monkeypatch.setattr(mixins, "LoraConfig", _config)
        if reason := EXPECTED.get(request.node.originalname):
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    own = {"get_dummy_components": get_dummy_components, "__module__": __name__}
    return type("TestLoRA", mixed, dict(own)), type("TestLoLDU", mixed, {**own, "loldu": loldu})


if __name__ == "__main__":
    main()
elif importlib.util.find_spec(PACKAGE):
    TestLoRA, TestLoLDU = _tests()
