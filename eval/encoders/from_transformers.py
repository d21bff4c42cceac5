"""Encoders of the transformers library: CLIP and SigLIP with a tokenizer, DINO to DINOv3."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, CLIPModel, SiglipModel, ViTModel

from eval.encoders.encoder import TextEncoder, TokenEncoder
from eval.encoders.preprocess import Preprocess, dino_preprocess
from loldu.prompts import tell_of_cut


class TransformersClip(TextEncoder):
    """A ``CLIPModel``, or a ``SiglipModel`` as SigLIP 2 is, with its tokenizer."""

    library = "transformers"

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = name_or_path
        self.siglip = AutoConfig.from_pretrained(name_or_path).model_type == "siglip"
        self.model = _complete_model(SiglipModel if self.siglip else CLIPModel, name_or_path)
        self.to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.preprocess = Preprocess.from_pretrained(name_or_path)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def _text_rows(self, texts: list[str]) -> Tensor:
        tell_of_cut(self.tokenizer, texts, "CLIP")
        if self.siglip:  # which was trained on prompts of one length, without a mask of the rest
            length = self.model.config.text_config.max_position_embeddings
            how: Any = {"padding": "max_length", "truncation": True, "max_length": length}
            ids = self.tokenizer(texts, return_tensors="pt", **how).input_ids
            return self.model.get_text_features(ids.to(self.device)).pooler_output
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output


class TransformersDino(TokenEncoder):
    """A ``ViTModel``, DINOv2 or DINOv3: the last layer's CLS token, before any head or pooler."""

    library = "transformers"

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = name_or_path
        vit = AutoConfig.from_pretrained(name_or_path).model_type == "vit"
        # No published checkpoint has a ViTModel's pooler: it would be random, and is not used.
        self.model = (
            _complete_model(ViTModel, name_or_path, add_pooling_layer=False)
            if vit
            else _complete_model(AutoModel, name_or_path)
        )
        self.to(device)
        self.preprocess = dino_preprocess(name_or_path, self.model.config.image_size, vit=vit)

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches."""
        return 1 + getattr(self.model.config, "num_register_tokens", 0)

    def _tokens(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).last_hidden_state


def _complete_model(kind: Any, name_or_path: str, **options: bool) -> Any:  # noqa: ANN401
    """Load a model; refuse a checkpoint that lacks weights, which would be filled at random."""
    model, report = kind.from_pretrained(
        name_or_path, dtype=torch.float32, output_loading_info=True, **options
    )
    if report["missing_keys"]:
        raise OSError(f"{min(report['missing_keys'])} is missing")
    return model.eval()
