"""The floor of a training step: what no adapter on the attention projections can do without.

``python -m benchmarks.floor`` takes the steps with a progress bar, as the trainers beside it do.

An adapter computes its gradients from its layer's input and from the gradient of its layer's
output. So a step runs the frozen U-Net forward, and backward from its output to the outputs of the
attention projections: through everything that follows the first of them, into the keys and values
of the text, and neither into any weight nor into the layers before the first attention. Gradients
begin at projections whose own input needs none (queries, keys and values of the first attention,
and all keys and values of the text): these get a bias, the cheapest thing that autograd, and a
compiler, will take for a beginning. No loss, no optimizer, no autocast.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.adapters import projections
from benchmarks.stable_diffusion import TEXT_TOKENS

Step = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """Take steps of the frozen U-Net's forward and backward."""

    # A diffusers folder.
    pretrained_model_name_or_path: Path
    # How many steps.
    max_train_steps: int = 100
    # Where: cpu or cuda.
    device: str = "cpu"
    # Of weights and inputs.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    # Compile the U-Net.
    compile: bool = False
    # Capture the step as one CUDA graph, so that nothing is launched but that.
    capture: bool = False


def with_shared_weights(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a U-Net with layers of its own and the same weights, for another adapter."""
    weights = [*unet.parameters(), *unet.buffers()]
    return copy.deepcopy(unet, {id(weight): weight for weight in weights})


def random_inputs(unet: UNet2DConditionModel, latent_size: int, rows: int = 1) -> dict[str, Tensor]:
    """Return what the U-Net is called with, where it is and in its dtype."""
    shapes = {
        "sample": (rows, 4, latent_size, latent_size),
        "encoder_hidden_states": (rows, TEXT_TOKENS, unet.config["cross_attention_dim"]),
    }
    drawn = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs = {name: tensor.to(unet.device, unet.dtype) for name, tensor in drawn.items()}
    return {**inputs, "timestep": torch.full((rows,), 500, device=unet.device)}


def where_gradients_begin(unet: nn.Module, inputs: dict[str, Tensor]) -> dict[str, nn.Linear]:
    """Return the attention projections that no gradient of another one's output goes through."""
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
    """Return the step; the U-Net is frozen and gets its biases."""
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
    """As PyTorch's notes on CUDA graphs ask: warmed up on another stream."""
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
        return kept  # the graph writes there

    return replay


def main(argv: Sequence[str] | None = None) -> None:
    """Take the steps; each is done before the bar moves."""
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
