from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.utils._python_dispatch import TorchDispatchMode

from loldu import load_concept, read_concept
from loldu.adapter.layer import LoLDULayer
from loldu.base.families import family_of
from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion import STATES, embed
from loldu.errors import LoLDUError
from trainer.methods.method import add_trainables, method_named, save_result
from trainer.methods.textual_inversion import learn_words
from trainer.methods.trained import Trained
from trainer.options.config import Config, Method, Rank

MakeConfig = Callable[..., Config]
Predict = Callable[[DiffusionPipeline], torch.Tensor]
WORD = ("--placeholder_token", "<toy>", "--initializer_token", "s")
WORD += ("--instance_prompt", "a <toy> toy")


def add(pipeline: DiffusionPipeline, config: Config) -> Trained:
    configs = {"default": config}
    return add_trainables(pipeline, configs, learn_words(pipeline, configs))


def stir(trained: Trained) -> None:
    """Change every trained parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def linears(pipeline: DiffusionPipeline) -> list[torch.Size]:
    return [
        module.weight.shape
        for name, module in pipeline.unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    ]


@pytest.mark.parametrize("rank", [4, "full"])
@pytest.mark.parametrize(
    ("method", "train_scale"), [("loldu", True), ("loldu", False), ("svfit", True), ("lora", True)]
)
def test_trainables_are_counted_fp32_and_start_at_the_base(
    method: Method,
    train_scale: bool,
    rank: Rank,
    pipeline: DiffusionPipeline,
    make_config: MakeConfig,
    predict: Predict,
) -> None:
    shapes, before = linears(pipeline), predict(pipeline)
    scale = "--train_scale" if train_scale else "--no_train_scale"
    trained = add(pipeline, make_config("--method", method, "--rank", str(rank), scale))
    r = 16 if rank == "full" else rank
    clamped = [min(r, *shape) for shape in shapes]
    if method == "lora":
        expected = sum(r * sum(shape) for shape in shapes)
    else:
        expected = sum(clamped) + len(shapes) * train_scale
    assert sum(parameter.numel() for parameter in trained.parameters()) == expected
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
    torch.testing.assert_close(predict(pipeline), before, rtol=0, atol=0)
    assert trained.delta_norms() == [0]


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_trainables_stay_fp32_on_a_bf16_base(
    method: Method, base_folder: Path, make_config: MakeConfig
) -> None:
    pipeline = load_pipeline(str(base_folder), torch_dtype=torch.bfloat16)
    trained = add(pipeline, make_config("--method", method, "--train_text_encoder"))
    ours = {id(parameter) for parameter in trained.parameters()}
    assert ours
    assert all(parameter.dtype == torch.float32 for parameter in trained.parameters())
    for part in (pipeline.unet, pipeline.text_encoder):
        frozen = [p for p in part.parameters() if id(p) not in ours]
        assert all(parameter.dtype == torch.bfloat16 for parameter in frozen)


def test_the_scale_is_alpha_over_rank(pipeline: DiffusionPipeline, make_config: MakeConfig) -> None:
    more = ("--rank", "full", "--alpha", "4", "--no_train_scale")
    trained = add(pipeline, make_config(*more))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.fill_(1.0)
    for module in pipeline.unet.modules():
        if isinstance(module, LoLDULayer):
            torch.testing.assert_close(module.delta("default"), torch.full((16,), 4 / 16))


def test_delta_norm_is_that_of_the_weights(
    pipeline: DiffusionPipeline, make_config: MakeConfig
) -> None:
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    trained = add(pipeline, make_config())
    stir(trained)
    (norm,) = trained.delta_norms()
    ours = {id(parameter) for parameter in trained.parameters()}
    for module in list(pipeline.unet.modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
    squares = [
        (p - before[name.replace(".base_layer", "")]).square().sum()
        for name, p in pipeline.unet.named_parameters()
        if id(p) not in ours
    ]
    assert norm == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-4)


class Waits(TorchDispatchMode):
    """Count how often the host reads a tensor's value, which waits for a device."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_delta_norms_synchronize_with_the_device_once(
    method: Method, pipeline: DiffusionPipeline, make_config: MakeConfig
) -> None:
    trained = add(pipeline, make_config("--method", method))
    with Waits() as waits:
        trained.delta_norms()
    assert waits.count <= 1


def test_no_matching_layer_gives_one_clear_error(
    pipeline: DiffusionPipeline, make_config: MakeConfig
) -> None:
    with pytest.raises(LoLDUError, match="--target_modules query value matches no layer"):
        add(pipeline, make_config("--target_modules", "query", "value"))


@pytest.mark.parametrize("more", [(), ("--alpha", "2", "--train_text_encoder"), WORD])
@pytest.mark.parametrize("method", ["loldu", "svfit", "lora", "dreambooth", "textual_inversion"])
def test_the_result_loads_into_a_fresh_pipeline(
    method: Method,
    more: tuple[str, ...],
    base_folder: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    predict: Predict,
) -> None:
    if (method == "textual_inversion") != (more is WORD) and method not in ("loldu", "lora"):
        pytest.skip("a word and a whole model do not go together, and no word is nothing to learn")
    if method == "dreambooth":
        more = ()
    out = tmp_path / "run"
    out.mkdir()
    config = make_config("--method", method, *more)
    pipeline = load_pipeline(str(base_folder))
    base = predict(pipeline)
    trained = add(pipeline, config)
    stir(trained)
    save_result(pipeline, trained, "default", config, {"instance_prompt": "sks"}, out)
    path = out / method_named(method).file_name
    fresh = load_pipeline(str(base_folder))
    if method == "dreambooth":
        fresh = load_pipeline(str(path))
    elif method == "lora":
        fresh.load_lora_weights(str(out), weight_name=path.name)
    elif method != "textual_inversion":
        load_concept(fresh, path)
        assert read_concept(path).metadata["instance_prompt"] == "sks"
    if more is WORD:
        fresh.load_textual_inversion(str(out), weight_name="learned_embeds.safetensors")
    if method != "textual_inversion":
        assert (predict(fresh) - base).abs().max() > 1e-3
    torch.testing.assert_close(predict(fresh), predict(pipeline), rtol=1e-4, atol=1e-4)
    prompt = ["a <toy> toy"]
    torch.testing.assert_close(embed(fresh, prompt), embed(pipeline, prompt), rtol=1e-4, atol=1e-4)
    names = {path.name, "learned_embeds.safetensors"} if more is WORD else {path.name}
    assert {file.name for file in out.iterdir()} == names


def test_a_new_word_starts_at_its_initializer_and_other_words_stay(
    pipeline: DiffusionPipeline, make_config: MakeConfig
) -> None:
    before = embed(pipeline, ["a s toy", "a toy"])
    trained = add(pipeline, make_config("--method", "textual_inversion", *WORD))
    torch.testing.assert_close(embed(pipeline, ["a <toy> toy"]), before[:1])
    stir(trained)
    moved = torch.randn(16, generator=torch.Generator().manual_seed(1)).norm().item() * 0.3
    assert trained.delta_norms() == pytest.approx([moved])
    assert not torch.allclose(embed(pipeline, ["a <toy> toy"]), before[:1])
    assert torch.equal(embed(pipeline, ["a s toy", "a toy"]), before)


@pytest.mark.parametrize(
    ("word", "start", "message"),
    [
        ("<toy>", "sks", "--initializer_token sks is 3 tokens to this base"),
        ("s", "t", "--placeholder_token s is a word that this base knows"),
    ],
)
def test_invalid_new_words_are_refused(
    word: str,
    start: str,
    message: str,
    pipeline: DiffusionPipeline,
    make_config: MakeConfig,
) -> None:
    word_flags = ("--placeholder_token", word, "--initializer_token", start)
    config = make_config(*word_flags, "--instance_prompt", f"a {word} toy")
    with pytest.raises(LoLDUError, match=message):
        add(pipeline, config)


def test_a_diverged_adapter_is_not_saved(
    pipeline: DiffusionPipeline, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config("--output_dir", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    trained = add(pipeline, config)
    trained.parameters()[0].data.fill_(torch.nan)
    with pytest.raises(LoLDUError, match="not finite"):
        save_result(pipeline, trained, "default", config, {}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_long_prompts_of_several_concepts_are_read_by_the_right_text_encoder(
    base_folder: Path, make_config: MakeConfig
) -> None:
    config = make_config("--prompt_chunks", "2", "--train_text_encoder")
    pipeline = load_pipeline(config.base)
    long = "a b c d e f g h i j k l m n o p q r s"  # 19 tokens, of which 14 fit into a chunk
    family, encoders = family_of(pipeline), {"text_encoder": pipeline.text_encoder}
    conditioning = family.encode_text(pipeline, [long, long, "a b", "c d"])
    trained = add_trainables(pipeline, {"one": config, "two": config}, {})
    stir(trained)
    with torch.no_grad():
        together = family.encode_again(encoders, conditioning)[STATES]
        assert together.shape[1] == 2 * 16
        for index, name in enumerate(("one", "two")):
            own = {key: tensor[index::2] for key, tensor in conditioning.items()}
            with trained.only(name):
                alone = family.encode_again(encoders, own)[STATES]
            torch.testing.assert_close(together[index::2], alone)
    assert not torch.allclose(together[0], together[1])
