"""LoLDU in several processes, and under accelerate: prepared, accumulated, offloaded, resumed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import accelerate
import pytest
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from loldu import ConceptError, LoLDUConfig, load_concept, project, save_concept
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.shared_factors import SharedFactors

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, 24, generator=GENERATOR), torch.randn(8, 3, generator=GENERATOR)
TARGETS = ["wide", "tall"]
Make = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def _no_accelerator_left_over() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def build(make: Make, **options: object) -> tuple[PeftModel, torch.optim.Optimizer]:
    model = get_peft_model(make(), LoLDUConfig(r=6, target_modules=TARGETS, **options))
    parameters = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(parameters, lr=1e-2)


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def take_part(rank: int, make: Make, folder: Path) -> None:
    """Train one of two processes on every second row."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.manual_seed(rank)
    model, optimizer = build(make)
    parallel = DistributedDataParallel(model, find_unused_parameters=False)
    comparisons: list[int] = []
    begins_with = SharedFactors.begins_with

    def counted(self: SharedFactors, pivots: Tensor | None, r: int) -> bool:
        comparisons.append(r)
        return begins_with(self, pivots, r)

    SharedFactors.begins_with = counted
    for _ in range(3):
        train(parallel, optimizer, X[rank::2], Y[rank::2], 1)
        project(model, 0.3)
    torch.save((trained(model), len(comparisons)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_does(make_two_layers: Make, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        take_part, (make_two_layers, tmp_path), 2, start_method="fork"
    )
    (first, _), (second, compared) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    model, optimizer = build(make_two_layers)
    for _ in range(3):
        train(model, optimizer, X, Y, 1)
        project(model, 0.3)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, trained(model), rtol=0, atol=1e-7)
    assert all(tensor.any() for tensor in first.values())
    # Broadcast buffers must not make every forward pass compare pivots again.
    assert compared <= len(TARGETS)


@pytest.fixture
def _one_process() -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_fully_sharded_model_computes_the_same(make_two_layers: Make) -> None:
    model, _ = build(make_two_layers, init_weights=False)
    with torch.no_grad():
        expected = model(X)
    trained_on = model(X)
    sharded = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    # Its weights are views of one trained tensor; without gradients they take the same route.
    with torch.no_grad():
        assert torch.equal(sharded(X), expected)
    # In training they take the factored route, whose rounding differs.
    torch.testing.assert_close(sharded(X), trained_on, rtol=0, atol=1e-6)


def test_a_broadcast_is_a_few_numbers_per_direction(make_two_layers: Make) -> None:
    model, _ = build(make_two_layers)
    buffers = sum(t.numel() * t.element_size() for t in model.buffers())
    assert buffers == len(TARGETS) * 6 * (4 + 4)
    held = [f for m in model.modules() if isinstance(m, LoLDULayer) for f in m.factors.values()]
    assert sum(f.left.numel() + f.right.numel() for f in held) == 6 * (24 + 12 + 12 + 20)


def epoch(accelerator: Accelerator, model: nn.Module, optimizer: object, loader: object) -> None:
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            optimizer.step()
            optimizer.zero_grad()


def test_accumulated_gradients_and_an_exact_resume(make_two_layers: Make, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, loader = accelerator.prepare(
        *build(make_two_layers), DataLoader(TensorDataset(X, Y), batch_size=2)
    )
    for _ in range(3):
        epoch(accelerator, model, optimizer, loader)
    plain, whole_batch = build(make_two_layers)
    train(plain, whole_batch, X, Y, 3)
    unwrapped = accelerator.unwrap_model(model)
    assert isinstance(unwrapped, PeftModel)
    torch.testing.assert_close(trained(unwrapped), trained(plain), rtol=0, atol=1e-7)

    accelerator.save_state(tmp_path)
    before = trained(model)
    epoch(accelerator, model, optimizer, loader)
    after = trained(model)
    accelerator.load_state(tmp_path)
    torch.testing.assert_close(trained(model), before, rtol=0, atol=0)
    epoch(accelerator, model, optimizer, loader)
    torch.testing.assert_close(trained(model), after, rtol=0, atol=0)
    assert not torch.equal(model(X), plain(X))


def to_cpu(model: nn.Module, _: Path) -> None:
    accelerate.cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def to_disk(model: nn.Module, folder: Path) -> None:
    accelerate.disk_offload(model, folder, torch.device("cpu"), offload_buffers=True)


def to_several_places(model: nn.Module, folder: Path) -> None:
    prefix = "base_model.model" if isinstance(model, PeftModel) else ""
    places = {"wide": "disk", "tall": "cpu", "head": "disk"}
    accelerate.dispatch_model(
        model,
        {f"{prefix}.{name}".lstrip("."): place for name, place in places.items()},
        main_device="cpu",
        offload_dir=folder,
    )


OFFLOADS = [to_cpu, to_disk, to_several_places]


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_computes_the_same(
    make_two_layers: Make, tmp_path: Path, offload: Callable[[nn.Module, Path], None]
) -> None:
    model, _ = build(make_two_layers, init_weights=False)
    expected = model(X)
    offload(model, tmp_path)
    assert model.get_submodule("base_model.model.wide").base_layer.weight.is_meta
    assert torch.equal(model(X), expected)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_says_when_a_concept_must_be_loaded_or_saved(
    make_two_layers: Make, tmp_path: Path, offload: Callable[[nn.Module, Path], None]
) -> None:
    source, _ = build(make_two_layers, init_weights=False)
    concept = save_concept(source, tmp_path / "dog.safetensors")
    base = make_two_layers()
    offload(base, tmp_path / "base")
    before = base(X)
    with pytest.raises(ConceptError, match=r"layer 'wide' .*: load the concept first"):
        load_concept(base, concept)
    assert torch.equal(base(X), before)
    offload(source, tmp_path / "source")
    with pytest.raises(ConceptError, match=r"layer 'wide' .*: load .* or save the concept"):
        save_concept(source, tmp_path / "again.safetensors")
    loaded = make_two_layers()
    load_concept(loaded, concept)
    offload(loaded, tmp_path / "loaded")
    assert torch.equal(loaded(X), source(X))
