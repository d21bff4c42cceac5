"""The floor of a training step: the work that every adapter on the attention projections needs.

``python -m benchmarks.floor`` takes the steps with a progress bar, like the trainers beside it.

An adapter computes its gradients from its layer's input and from the gradient of its layer's
output. So a step runs the frozen U-Net forward, and backward from its output to the outputs of the
attention projections. It needs no gradient of a weight, and none of the layers before the first
attention. Some projections have inputs without gradients: queries, keys and values of the first
attention, and all keys and values of the text. These get a bias, which is the cheapest leaf for
autograd and for a compiler. There is no loss, no optimizer and no autocast.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness import Dtype
from benchmarks.stable_diffusion import projections, random_inputs

Step = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Take steps of the frozen U-Net's forward and backward."""

    # A diffusers folder.
    pretrained_model_name_or_path: Path
    # Number of steps.
    max_train_steps: int = 100
    # Device: cpu or cuda.
    device: str = "cpu"
    # Dtype of weights and inputs.
    dtype: Dtype = "float32"
    # Compile the U-Net.
    compile: bool = False
    # Capture the step as one CUDA graph, so that a step is one launch.
    capture: bool = False


def with_shared_weights(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a U-Net with its own layers and the same weights, for another adapter."""
    weights = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(weight): weight for weight in weights})


def where_gradients_begin(unet: nn.Module, inputs: dict[str, Tensor]) -> dict[str, nn.Linear]:
    """Return the attention projections whose input needs no gradient, by name."""
    begins: dict[str, nn.Linear] = {}

    def note(name: str, linear: nn.Linear, output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()
            begins[name] = linear

    def hook(name: str) -> Callable[..., None]:
        return lambda linear, _, output: note(name, linear, output)

    hooks = [linear.register_forward_hook(hook(name)) for name, linear in projections(unet).items()]
    unet(**inputs)
    for registered in hooks:
        registered.remove()
    return begins


def floor_step(
    unet: nn.Module, inputs: dict[str, Tensor], *, compiled: bool = False, captured: bool = False
) -> Step:
    """Return the step of a frozen U-Net, which gets the biases."""
    biases: list[nn.Parameter] = []
    for linear in where_gradients_begin(unet, inputs).values():
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        biases.append(linear.bias)
    forward: Any = torch.compile(unet) if compiled else unet

    def step() -> tuple[Tensor, ...]:
        output = forward(**inputs, return_dict=False)[0]
        return torch.autograd.grad(output, biases, torch.ones_like(output))

    return _captured(step) if captured else step


def _captured(step: Step) -> Step:
    """Capture a step as a CUDA graph; PyTorch's notes ask for a warm-up on another stream."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = step()

    def replay() -> object:
        graph.replay()
        return kept  # the graph writes to these tensors

    return replay


def main(argv: Sequence[str] | None = None) -> None:
    """Take the steps; the bar moves when a step has finished."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.floor", use_underscores=True
    )
    unet = UNet2DConditionModel.from_pretrained(
        options.pretrained_model_name_or_path,
        subfolder="unet",
        torch_dtype=getattr(torch, options.dtype),
    )
    nn.Module.to(unet.requires_grad_(False), options.device)
    inputs = random_inputs(unet, unet.config["sample_size"])
    step = floor_step(unet, inputs, compiled=options.compile, captured=options.capture)
    for _ in tqdm(range(options.max_train_steps), desc="floor"):
        step()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
