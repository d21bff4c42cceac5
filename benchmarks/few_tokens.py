"""A training step on a small text encoder at few tokens: LoLDU of several ranks beside LoRA.

``python -m benchmarks.few_tokens``. The encoder has the shape of MiniLM (6 layers, width 384) and
random weights. Beside the time, the record holds the multiplications of each step, as PyTorch
counts them: the two show where the time goes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.harness import Options as Shared
from benchmarks.harness import digits, in_turns, ratio, run, seconds_of, show, spread
from loldu import LoLDUConfig

TARGETS = ["query", "key", "value", "attention.output.dense"]
LORA = "lora_r32"


@dataclass(frozen=True)
class Options(Shared):
    """Time the step with every adapter in turn, at several numbers of tokens."""

    # How many times each step is timed; the result holds medians.
    repetitions: int = 15
    # Width and depth of the encoder; by default those of MiniLM.
    width: int = 384
    layers: int = 6
    # Sentences in a batch; each has 48 tokens.
    batches: tuple[int, ...] = (1, 8)


def methods(options: Options) -> dict[str, PeftConfig]:
    """Return the adapters by name; the last has the full rank of the projections."""
    ranks = (32, options.width // 4, options.width)
    configs: dict[str, PeftConfig] = {LORA: LoraConfig(r=32, target_modules=TARGETS)}
    for r in ranks:
        configs[f"loldu_r{r}"] = LoLDUConfig(r=r, target_modules=TARGETS)
    return configs


def encoder(options: Options, config: PeftConfig) -> nn.Module:
    """Return the encoder with an adapter on its attention projections."""
    torch.manual_seed(options.seed)
    shape = BertConfig(
        vocab_size=64,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=12,
        intermediate_size=4 * options.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return get_peft_model(BertModel(shape, add_pooling_layer=False), config)


def run_step(model: nn.Module, tokens: Tensor) -> None:
    """Compute the gradients of the trained parameters."""
    model(input_ids=tokens).last_hidden_state.square().mean().backward()


def multiplications(step: Callable[[], object]) -> int:
    """Return the multiplications in the matrix products of a step."""
    # PyTorch's table lacks the product that is added in place.
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _flops}) as counter:
        step()
    return counter.get_total_flops() // 2


def _flops(_: object, a: Sequence[int], b: Sequence[int], **__: object) -> int:
    return 2 * a[0] * a[1] * b[1]


def measure(options: Options) -> dict[str, Any]:
    """Return the results by number of tokens."""
    models = {name: encoder(options, config) for name, config in methods(options).items()}
    cases: list[dict[str, Any]] = []
    for batch in options.batches:
        tokens = torch.randint(64, (batch, 48))
        steps = {name: partial(run_step, model, tokens) for name, model in models.items()}
        counts = {name: multiplications(step) for name, step in steps.items()}
        timed = {name: partial(seconds_of, step, "cpu") for name, step in steps.items()}
        seconds = in_turns(timed, options.repetitions)
        cases.append(
            {
                "tokens": tokens.numel(),
                "methods": {
                    name: {
                        "seconds": spread(seconds[name]),
                        "times_as_long_as_lora": ratio(seconds[name], seconds[LORA]),
                        "times_the_multiplications": digits(counts[name] / counts[LORA]),
                    }
                    for name in models
                },
            }
        )
    return {"dtype": "float32", "cases": cases}


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of all cases."""
    rows = [
        {
            "tokens": case["tokens"],
            "method": name,
            "ms": 1000 * method["seconds"]["median"],
            "/ LoRA": method["times_as_long_as_lora"]["median"],
            "multiplications / LoRA": method["times_the_multiplications"],
        }
        for case in record["cases"]
        for name, method in case["methods"].items()
    ]
    yield show("a training step of a text encoder", rows)


main = partial(run, "few_tokens", Options, measure, tables)

if __name__ == "__main__":
    main()
