"""Common uses of a PEFT model: copies, checkpointing, averages, reports, a Trainer."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from peft import PeftModel, get_layer_status, get_model_status, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from loldu import LoLDUConfig, project, set_concepts
from loldu.adapter.layer import LoLDULayer

Make = Callable[..., nn.Module]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def build(make: Make) -> PeftModel:
    """Adapters 'default' and 'b' share factors, 'svd' has its own."""
    options = {"r": 6, "target_modules": ["wide", "tall"], "init_weights": False}
    model = get_peft_model(make(), LoLDUConfig(**options))
    model.add_adapter("b", LoLDUConfig(**options | {"seed": 1, "r": 3}))
    model.add_adapter("svd", LoLDUConfig(**options | {"seed": 2, "factorization": "svd"}))
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def layers(model: nn.Module) -> list[LoLDULayer]:
    return [module for module in model.modules() if isinstance(module, LoLDULayer)]


def tensors(model: nn.Module) -> list[Tensor]:
    held = [f for layer in layers(model) for f in layer.factors.values()]
    factors = [t for f in held for t in (f.left, f.right, f.gain, f.diagonal)]
    return [*model.parameters(), *model.buffers(), *factors]


def step(model: nn.Module, learning_rate: float = 0.1) -> None:
    optimizer = torch.optim.SGD(trained(model), lr=learning_rate)
    model(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copier", [copy.deepcopy, pickled, saved_and_loaded])
def test_a_copy_shares_nothing_with_the_original(
    make_two_layers: Make, copier: Callable[[nn.Module], nn.Module]
) -> None:
    model = build(make_two_layers)
    set_concepts(model, ["default", "svd", None])
    duplicate = copier(model)
    assert torch.equal(duplicate(X), model(X))
    places = {tensor.data_ptr() for tensor in tensors(model)}
    assert places.isdisjoint(tensor.data_ptr() for tensor in tensors(duplicate))
    for layer in layers(duplicate):
        assert layer.factors["default"] is layer.factors["b"]
        assert layer.factors["default"] is not layer.factors["svd"]
    for each in (model, duplicate):
        set_concepts(each, None)
    before = model(X)
    step(duplicate)
    assert torch.equal(model(X), before)
    assert not torch.equal(duplicate(X), before)
    duplicate.delete_adapter("b")
    assert torch.equal(model(X), before)
    assert "b" in layers(model)[0].factors


def answer(queue: object, model: nn.Module) -> None:
    queue.put(model(X).tolist())


@pytest.mark.slow
def test_a_model_goes_to_a_spawned_process(make_two_layers: Make, tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    model, queue = build(make_two_layers).requires_grad_(False), context.SimpleQueue()
    process = context.Process(target=answer, args=(queue, model))
    process.start()
    received = torch.tensor(queue.get())
    process.join()
    assert torch.equal(received, model(X))


def test_averages_of_an_adapter_in_training(make_two_layers: Make) -> None:
    model = build(make_two_layers)
    average = EMAModel(trained(model), decay=0.9)
    step(model)
    average.step(trained(model))
    start = [p.detach().clone() for p in trained(model)]
    step(model)
    average.step(trained(model))
    decay = average.cur_decay_value
    end, y = [p.detach().clone() for p in trained(model)], model(X)
    average.store(trained(model))
    average.copy_to(trained(model))
    expected = [decay * a + (1 - decay) * b for a, b in zip(start, end, strict=True)]
    assert 0 < decay < 1
    torch.testing.assert_close([p.detach() for p in trained(model)], expected)
    assert not torch.equal(model(X), y)
    average.restore(trained(model))
    assert torch.equal(model(X), y)


def reentrant(function: Callable[..., Tensor], *args: object) -> Tensor:
    return checkpoint(function.__call__, *args, use_reentrant=True)


@pytest.mark.parametrize("function", [None, reentrant])
def test_checkpointing_a_unet_changes_no_gradient(
    make_unet: Callable[..., UNet2DConditionModel], function: Callable[..., Tensor] | None
) -> None:
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=4, init_weights=False))
    unet.train()
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 5, 8, generator=generator)
    # The reentrant kind sends gradients back from blocks whose input has one.
    sample.requires_grad_(function is not None)

    def gradients() -> tuple[Tensor, ...]:
        y = unet(sample, torch.tensor([3, 700]), states).sample
        unet.zero_grad()
        y.square().mean().backward()
        return tuple(p.grad for p in trained(unet))

    expected = gradients()
    unet.enable_gradient_checkpointing(function)
    torch.testing.assert_close(gradients(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_a_text_encoder_changes_no_gradient(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=8, bos_token_id=14, eos_token_id=15,
        )
    )  # fmt: skip
    encoder.add_adapter(LoLDUConfig(r=4, init_weights=False))
    encoder.train()

    def gradients() -> tuple[Tensor, ...]:
        encoder.zero_grad()
        encoder(torch.arange(8)[None]).last_hidden_state.square().mean().backward()
        return tuple(p.grad for p in trained(encoder))

    expected = gradients()
    encoder.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    encoder.enable_input_require_grads()
    torch.testing.assert_close(gradients(), expected, rtol=1e-5, atol=1e-6)
    assert all(gradient.any() for gradient in expected)


def test_hot_swapping_is_refused_and_changes_nothing(make_two_layers: Make, tmp_path: Path) -> None:
    model, other = build(make_two_layers), build(make_two_layers)
    step(other)
    other.save_pretrained(tmp_path, selected_adapters=["default"])
    before = model(X)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but LOLDU was passed"):
        hotswap_adapter(model, tmp_path, "default")
    assert torch.equal(model(X), before)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    ))  # fmt: skip
    encoder.add_adapter(LoLDUConfig(r=4), "default")
    with pytest.raises(ValueError, match="only supported for LoRA"):
        encoder.load_adapter(str(tmp_path), "default", hotswap=True)


def test_reports_count_what_is_trained(
    make_two_layers: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    model = get_peft_model(make_two_layers(), LoLDUConfig(r=6, target_modules=["wide", "tall"]))
    model.add_adapter("b", LoLDUConfig(r=3, target_modules=["tall"], train_scale=False))
    base = sum(p.numel() for p in make_two_layers().parameters())
    total = base + 2 * (6 + 1) + 3
    assert model.get_nb_trainable_parameters() == (14, total)
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: 14 || all params: {total} ||")
    model.base_model.set_adapter(["default", "b"])
    status = get_model_status(model)
    assert (status.trainable_params, status.total_params) == (17, total)
    assert status.peft_types == {"default": "LOLDU", "b": "LOLDU"}
    assert status.num_adapter_layers == 2
    assert status.active_adapters == ["default", "b"]
    assert (status.enabled, status.merged_adapters) == (True, [])
    assert status.requires_grad == {"default": True, "b": True}
    names = {layer.name: layer.available_adapters for layer in get_layer_status(model)}
    assert names == {"model.wide": ["default"], "model.tall": ["b", "default"]}
    model.merge_adapter(["b"])
    assert get_model_status(model).merged_adapters == ["b"]


class Sentences(Dataset[dict[str, Tensor]]):
    """Random tokens with a label each."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.randint(3, 30, (6,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": tokens, "labels": torch.tensor(index % 2)}


class StayOnTheBall(TrainerCallback):
    """Eq. (10)-(12) after every step."""

    def on_step_end(self, *_: object, model: nn.Module, **__: object) -> None:
        project(model, 1e-3)


@pytest.fixture
def _no_accelerator_left_over() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_no_accelerator_left_over")
def test_a_trainer_saves_resumes_and_projects(tmp_path: Path) -> None:
    def train(resume: bool | str, steps: int, folder: str) -> PeftModel:
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model = get_peft_model(
            RobertaForSequenceClassification(config),
            LoLDUConfig(r=4, target_modules=["query", "value"], modules_to_save=["classifier"]),
        )
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=steps, save_steps=1, learning_rate=5e-2,
            lr_scheduler_type="constant", per_device_train_batch_size=4, report_to=[],
            use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Sentences(), callbacks=[StayOnTheBall()])
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = train(False, 2, "whole")
    train(False, 1, "halves")
    resumed = train(str(tmp_path / "halves" / "checkpoint-1"), 2, "halves")
    for p, q in zip(trained(whole), trained(resumed), strict=True):
        assert torch.equal(p, q)
    for layer in layers(whole):
        assert layer.delta_norm("default").item() == pytest.approx(1e-3, rel=1e-3)
    tokens = Sentences()[0]["input_ids"][None]
    loaded = PeftModel.from_pretrained(
        whole.unload(), tmp_path / "whole" / "checkpoint-2", is_trainable=True
    )
    assert torch.equal(loaded(tokens).logits, resumed.eval()(tokens).logits)
    merged = resumed.merge_and_unload()
    assert not layers(merged)
    torch.testing.assert_close(merged(tokens).logits, loaded(tokens).logits)
