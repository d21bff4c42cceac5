"""An offline hub cache: tiny random models under the names that PEFT's tests ask the hub for."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
import peft
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

REVISION = "0" * 40
TOKENIZER = Path("pocket/base/tokenizer")

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = {**SIZES, "max_position_embeddings": 128, "pad_token_id": 0}
QWEN = {**LLAMA, "num_key_value_heads": 2}
GPT = {"vocab_size": 1024, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT_TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
BERT = {**SIZES, "max_position_embeddings": 128, "type_vocab_size": 16}
BART = {
    "vocab_size": 1024,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 128,
}
T5 = {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GEMMA = {**QWEN, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
OPT = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
DEBERTA = {
    **BERT,
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

# By name on the hub: the class of the model and the options of its configuration.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTForCausalLM", OPT),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("GPT2LMHeadModel", {**GPT, **GPT_TOKENS}),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": (
        "GPTJForCausalLM",
        {**GPT, **GPT_TOKENS, "rotary_dim": 4},
    ),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", QWEN),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", GEMMA),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": (
        "T5ForConditionalGeneration",
        {**T5, "decoder_start_token_id": 0},
    ),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": (
        "BartForConditionalGeneration",
        BART,
    ),
    "peft-internal-testing/tiny-random-BertModel": ("BertModel", BERT),
    "peft-internal-testing/tiny-random-RobertaModel": ("RobertaModel", BERT),
    "peft-internal-testing/tiny-random-DebertaModel": ("DebertaModel", DEBERTA),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("DebertaV2Model", DEBERTA),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": (
        "BertForSequenceClassification",
        BERT,
    ),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": (
        "RobertaForSequenceClassification",
        BERT,
    ),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": (
        "LlamaForSequenceClassification",
        LLAMA,
    ),
}


def fill(home: Path) -> None:
    """Build the models that an HF_HOME lacks; each appears complete or not at all."""
    for name, (model, options) in MODELS.items():
        with _snapshot(home, name) as folder:
            if folder is not None:
                _language_model(model, options).save_pretrained(folder)
    with _snapshot(home, "hf-internal-testing/tiny-sd-pipe") as folder:
        if folder is not None:
            _pipeline().save_pretrained(folder)
    with _snapshot(home, "peft-internal-testing/tiny-opt-lora-revision", "test") as folder:
        if folder is not None:
            base = _language_model(*MODELS["peft-internal-testing/tiny-random-OPTForCausalLM"])
            peft.get_peft_model(base, peft.LoraConfig()).save_pretrained(folder)


@contextmanager
def _snapshot(home: Path, name: str, branch: str = "main") -> Iterator[Path | None]:
    """Yield a folder for a repository's files, or None if the cache has them."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    if repository.exists():
        yield None
        return
    repository.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=home))
    try:
        snapshot = staging / "snapshots" / REVISION
        snapshot.mkdir(parents=True)
        torch.manual_seed(0)
        yield snapshot
        reference = staging / "refs" / branch
        reference.parent.mkdir()
        reference.write_text(REVISION)
        os.replace(staging, repository)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _language_model(name: str, options: dict[str, object]) -> PreTrainedModel:
    model: type[PreTrainedModel] = getattr(transformers, name)
    config: Callable[..., PretrainedConfig] = model.config_class
    return model(config(**options))


def _pipeline() -> diffusers.StableDiffusionPipeline:
    """A Stable Diffusion in miniature, with the text tokens of the embedded base."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(TOKENIZER)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        ),
        text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(32, 64),
            layers_per_block=2,
            cross_attention_dim=32,
            attention_head_dim=(2, 4),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
