"""Exported LoRAs, read back by the libraries they are for."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from loldu import ConceptError, LoLDUConfig, export_lora
from loldu.adapter.layer import LoLDULayer
from loldu.concept.export import low_rank

MakeUNet = Callable[..., UNet2DConditionModel]
MakeModel = Callable[..., nn.Module]
PROMPT = torch.tensor([[1, 5, 7, 2]])
ALL_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
UNET_RANKS = {"attn1.to_q": 3, "attn2.to_k": 5, "to_out.0": 64}


def text_encoder(kind: type[CLIPTextModel] = CLIPTextModel, seed: int = 0) -> CLIPTextModel:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, projection_dim=6,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return kind(config).eval()


def make_pipeline(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=None,
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def draw(unet: UNet2DConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, states = (torch.randn(*s, generator=generator) for s in ((2, 4, 8, 8), (2, 5, 8)))
    return unet(latents, torch.tensor([3, 700]), states).sample


@torch.no_grad()
def read(encoder: CLIPTextModel) -> Tensor:
    return encoder(PROMPT).last_hidden_state


def adapt(pipeline: StableDiffusionPipeline, **options: object) -> None:
    """Give UNet and text encoder adapters that change much, with ranks that differ."""
    changes = {"r": 8, "alpha": 3.0, "init_weights": False} | options
    unet = {"target_modules": ALL_LAYERS, "rank_pattern": UNET_RANKS} | changes
    pipeline.unet.add_adapter(LoLDUConfig(**unet))
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    encoder = {"target_modules": targets, "rank_pattern": {"v_proj": 2, "fc1": 99}} | changes
    pipeline.text_encoder.add_adapter(LoLDUConfig(**encoder))


@torch.no_grad()
def with_deltas(plain: nn.Module, adapted: nn.Module) -> nn.Module:
    """The reference: the base with every delta weight added to it, and no adapter."""
    modules = dict(plain.named_modules())
    layers = [(n, m) for n, m in adapted.named_modules() if isinstance(m, LoLDULayer)]
    assert layers
    for name, layer in layers:
        for adapter in layer.active_adapters:
            modules[name].weight += layer.get_delta_weight(adapter)
    return plain


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("diffusers", {}),
        ("kohya", {}),
        ("diffusers", {"factorization": "svd"}),
        ("kohya", {"pivoting": "complete"}),
    ],
    ids=str,
)
def test_a_diffusers_pipeline_draws_the_same(
    make_unet: MakeUNet, tmp_path: Path, layout: str, options: dict[str, object]
) -> None:
    live = make_pipeline(make_unet())
    adapt(live, **options)
    path = export_lora(live, tmp_path / "toy.safetensors", layout)
    loaded = make_pipeline(make_unet())
    loaded.load_lora_weights(path)

    image, text = draw(loaded.unet), read(loaded.text_encoder)
    assert_close(image, draw(live.unet))
    assert_close(text, read(live.text_encoder))
    assert_close(image, draw(with_deltas(make_unet(), live.unet)))
    assert_close(text, read(with_deltas(text_encoder(), live.text_encoder)))
    assert (image - draw(make_unet())).abs().max() > 0.03
    assert (text - read(text_encoder())).abs().max() > 0.03


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_both_text_encoders_of_an_xl_pipeline(
    make_unet: MakeUNet, tmp_path: Path, layout: str
) -> None:
    def make() -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=None,
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, seed=1),
            tokenizer=None,
            tokenizer_2=None,
            unet=make_unet(),
            scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
        )

    live, loaded = make(), make()
    adapt(live)
    config = LoLDUConfig(r=4, init_weights=False, target_modules=["q_proj", "out_proj"])
    live.text_encoder_2.add_adapter(config)
    path = export_lora(live, tmp_path / "toy.safetensors", layout)
    loaded.load_lora_weights(path)
    assert_close(draw(loaded.unet), draw(live.unet))
    for name in ("text_encoder", "text_encoder_2"):
        live_encoder, encoder = getattr(live, name), getattr(loaded, name)
        assert_close(read(encoder), read(live_encoder))
        assert not torch.equal(read(encoder), read(getattr(make(), name)))
    if layout == "kohya":
        assert {key.split("_text")[0] for key in load_file(path) if "text" in key} == {
            "lora_te1",
            "lora_te2",
        }


def test_a_text_encoder_of_which_only_the_mlp_is_adapted(
    make_unet: MakeUNet, tmp_path: Path
) -> None:
    live, loaded = make_pipeline(make_unet()), make_pipeline(make_unet())
    live.text_encoder.add_adapter(LoLDUConfig(init_weights=False, target_modules=["fc1", "fc2"]))
    for layout in ("diffusers", "kohya"):
        path = export_lora(live, tmp_path / f"{layout}.safetensors", layout)
        loaded.load_lora_weights(path)
        assert_close(read(loaded.text_encoder), read(live.text_encoder))
        loaded.unload_lora_weights()


def test_keys_and_shapes_of_kohya(make_unet: MakeUNet, tmp_path: Path) -> None:
    live = make_pipeline(make_unet())
    live.unet.add_adapter(LoLDUConfig(r=8, rank_pattern={"attn2.to_k": 5}))
    live.text_encoder.add_adapter(LoLDUConfig(r=4, target_modules=["q_proj"]))
    tensors = load_file(export_lora(live, tmp_path / "toy.safetensors", "kohya"))
    block = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2"
    shapes = {
        f"{block}_to_k.lora_down.weight": (5, 8),
        f"{block}_to_k.lora_up.weight": (16, 5),
        f"{block}_to_out_0.lora_up.weight": (16, 8),
        f"{block}_to_k.alpha": (),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_down.weight": (4, 8),
    }
    assert {key: tuple(tensors[key].shape) for key in shapes} == shapes
    assert {float(v) for key, v in tensors.items() if key.endswith(".alpha")} == {8.0}


def test_a_peft_model_computes_the_same(make_two_layers: MakeModel, tmp_path: Path) -> None:
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    config = LoLDUConfig(
        r=7, init_weights=False, target_modules=["wide", "tall"], rank_pattern={"tall": 99}
    )
    live = get_peft_model(make_two_layers(), config)
    folder = export_lora(live, tmp_path / "toy", "peft")
    assert sorted(file.name for file in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(make_two_layers(), folder)
    assert isinstance(loaded.peft_config["default"], LoraConfig)
    with torch.no_grad():
        assert_close(loaded(x), live(x))
        assert_close(loaded(x), with_deltas(make_two_layers(), live.get_base_model())(x))
        assert_close(loaded.merge_and_unload()(x), live(x))
        assert not torch.allclose(live(x), make_two_layers()(x), atol=0.05)


def test_peft_folders_of_a_pipeline(make_unet: MakeUNet, tmp_path: Path) -> None:
    live = make_pipeline(make_unet())
    adapt(live)
    folder = export_lora(live, tmp_path / "toy", "peft")
    unet = PeftModel.from_pretrained(make_unet(), folder / "unet")
    encoder = PeftModel.from_pretrained(text_encoder(), folder / "text_encoder")
    assert_close(draw(unet), draw(live.unet))
    assert_close(read(encoder), read(live.text_encoder))


def test_names_that_end_alike_are_kept_apart(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"fc": nn.Linear(6, 4), "block": nn.ModuleDict()}).eval()

    model, plain = make(), make()
    for part in (model, plain):
        torch.manual_seed(1)
        part["block"]["fc"] = nn.Linear(6, 4)
    live = get_peft_model(model, LoLDUConfig(target_modules="fc", init_weights=False, r=3))
    loaded = PeftModel.from_pretrained(plain, export_lora(live, tmp_path / "toy", "peft"))
    base = loaded.get_base_model()
    assert isinstance(base["block"]["fc"], nn.Linear)
    x = torch.randn(2, 6)
    assert_close(base["fc"](x), live.get_base_model()["fc"](x))


def test_a_classifier_trained_in_full_goes_along_in_the_peft_layout(tmp_path: Path) -> None:
    def make() -> RobertaForSequenceClassification:
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16,
        )  # fmt: skip
        return RobertaForSequenceClassification(config).eval()

    config = LoLDUConfig(
        r=4, task_type="SEQ_CLS", target_modules=["query", "value"], init_weights=False
    )
    live = get_peft_model(make(), config).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.5)
    loaded = PeftModel.from_pretrained(make(), export_lora(live, tmp_path / "toy", "peft"))
    tokens = torch.tensor([[3, 9, 4, 8]])
    with torch.no_grad():
        assert_close(loaded(tokens).logits, live(tokens).logits)
    with pytest.raises(ConceptError, match=r"also trains classifier.*layout='peft'"):
        export_lora(live, tmp_path / "toy.safetensors", "kohya")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_half_precision_halves_the_file(
    make_unet: MakeUNet, tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    live = make_pipeline(make_unet())
    adapt(live)
    full = export_lora(live, tmp_path / "full.safetensors")
    half = export_lora(live, tmp_path / "half.safetensors", dtype=dtype)
    files = [
        [tensor for name, tensor in load_file(path).items() if not name.endswith(".alpha")]
        for path in (full, half)
    ]
    assert {tensor.dtype for tensor in files[1]} == {dtype}
    sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in files]
    assert sizes[0] == 2 * sizes[1]
    loaded = make_pipeline(make_unet())
    loaded.load_lora_weights(half)
    assert_close(draw(loaded.unet), draw(live.unet), tolerance)


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
def test_the_split_keeps_what_each_precision_can_hold(size: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30))
    # A small pivot makes a large factor, and the two halves of a direction far from each other.
    with torch.no_grad():
        model[0].weight[:, 3] *= 1e-4
    live = get_peft_model(model, LoLDUConfig(r=20, target_modules=["0"], init_weights=False))
    layer = live.get_base_model()[0]
    with torch.no_grad():
        layer.diagonal("default").dz *= size
    shared, delta = layer.factors_of("default"), layer.delta("default").detach().double()
    exact = (shared.left.double() * delta * shared.gain) @ shared.right.double()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        up, down = low_rank(layer, "default", dtype)
        error = (up.double() @ down.double() - exact).norm() / exact.norm()
        assert error < 2 * torch.finfo(dtype).eps
        assert (up.abs().amax(0) / down.abs().amax(1)).log2().abs().max() < 2.1
    up, down = low_rank(layer, "default", torch.float32)
    # In float32 one side is the factor itself, up to powers of two.
    mantissa = torch.frexp(down / shared.right).mantissa[shared.right != 0]
    assert set(mantissa.tolist()) == {0.5}


def test_exports_ignore_the_current_strength(make_unet: MakeUNet, tmp_path: Path) -> None:
    live = make_pipeline(make_unet())
    adapt(live)
    as_trained = export_lora(live, tmp_path / "one.safetensors").read_bytes()
    live.set_adapters(["default"], [0.25])
    live.fuse_lora(components=["unet"])
    assert export_lora(live, tmp_path / "two.safetensors").read_bytes() == as_trained


def test_the_adapter_that_is_meant(make_two_layers: MakeModel, tmp_path: Path) -> None:
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    model = get_peft_model(
        make_two_layers(), LoraConfig(target_modules=["wide"]), adapter_name="other"
    ).get_base_model()
    with pytest.raises(ConceptError, match=r"there is no LoLDU adapter to export"):
        export_lora(model, tmp_path / "a", "peft")
    options = {"target_modules": ["wide", "tall"], "init_weights": False, "r": 4}
    live = get_peft_model(make_two_layers(), LoLDUConfig(**options), adapter_name="dog")
    live.add_adapter("toy", LoLDUConfig(seed=1, **options))
    for name, adapter_name in (("dog", None), ("toy", "toy")):
        folder = export_lora(live, tmp_path / name, "peft", adapter_name)
        live.set_adapter(name)
        loaded = PeftModel.from_pretrained(make_two_layers(), folder)
        with torch.no_grad():
            assert_close(loaded(x), live(x))
        live.set_adapter("dog")
    with pytest.raises(ConceptError, match=r"no LoLDU adapter named 'cat'"):
        export_lora(live, tmp_path / "b", "peft", "cat")
    live.base_model.set_adapter(["dog", "toy"])
    with pytest.raises(ConceptError, match=r"'dog', 'toy': say which with adapter_name"):
        export_lora(live, tmp_path / "b", "peft")


def test_unexportable_adapters_are_refused(
    make_unet: MakeUNet, make_two_layers: MakeModel, tmp_path: Path
) -> None:
    config = LoLDUConfig(target_modules=["wide"], init_weights=False)
    other = get_peft_model(make_two_layers(), config)
    file = tmp_path / "toy.safetensors"
    with pytest.raises(ConceptError, match=r"TwoLayers on its own.*pass the whole pipeline"):
        export_lora(other, file)
    with pytest.raises(ConceptError, match=r"layout must be one of diffusers, peft, kohya"):
        inspect.unwrap(export_lora)(other, file, "a1111")
    with pytest.raises(ConceptError, match=r"dtype must be one of float32, .* got torch\.int8"):
        export_lora(other, file, dtype=torch.int8)
    with pytest.raises(ConceptError, match=r"must end in \.safetensors"):
        export_lora(other, tmp_path / "toy.pt")
    with pytest.raises(ConceptError, match=r"must end in \.safetensors"):
        export_lora(other, tmp_path)
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=2, init_weights=False))
    layer = next(module for module in unet.modules() if isinstance(module, LoLDULayer))
    with torch.no_grad():
        layer.diagonal("default").dz[0] = float("inf")
    with pytest.raises(ConceptError, match=rf"layer '{layer.layer_name}'.*not finite"):
        export_lora(unet, file)
    assert list(tmp_path.iterdir()) == []


def test_a_unet_on_its_own_exports_what_its_pipeline_does(
    make_unet: MakeUNet, tmp_path: Path
) -> None:
    live = make_pipeline(make_unet())
    live.unet.add_adapter(LoLDUConfig(r=4, init_weights=False))
    for layout in ("diffusers", "kohya"):
        one = export_lora(live.unet, tmp_path / f"{layout}1.safetensors", layout)
        two = export_lora(live, tmp_path / f"{layout}2.safetensors", layout)
        assert one.read_bytes() == two.read_bytes()


def test_existing_files_are_overwritten_only_on_request(
    make_two_layers: MakeModel, make_unet: MakeUNet, tmp_path: Path
) -> None:
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=2, init_weights=False))
    for layout, kept in (("diffusers", "toy.safetensors"), ("peft", "adapter_config.json")):
        path = tmp_path / "toy" if layout == "peft" else tmp_path / kept
        file = path / kept if layout == "peft" else path
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        with pytest.raises(ConceptError, match=rf"{kept} exists: choose another name"):
            export_lora(unet, path, layout)
        assert file.read_text() == "mine"
        export_lora(unet, path, layout, overwrite=True)
        assert file.read_bytes() != b"mine"
    loaded = PeftModel.from_pretrained(make_unet(), tmp_path / "toy")
    assert_close(draw(loaded), draw(unet))
