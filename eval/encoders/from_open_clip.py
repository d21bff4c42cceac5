"""Encoders of the open_clip library."""

from typing import Any

import open_clip
import torch
from torch import Tensor

from eval.encoders.encoder import TextEncoder
from eval.encoders.preprocess import Preprocess
from loldu.prompts import log_cut


class OpenClip(TextEncoder):
    """An open_clip model: ``architecture/pretrained``, where ``pretrained`` is a tag or a file."""

    library = "open_clip_torch"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = f"open_clip:{name}"
        architecture, _, pretrained = name.partition("/")
        loaded: Any = open_clip.create_model(architecture, pretrained=pretrained or None)
        self.model = loaded.eval()
        self.to(device)
        config: Any = open_clip.get_model_preprocess_cfg(loaded)
        size = config["size"] if isinstance(config["size"], int) else config["size"][0]
        crop = size if config["resize_mode"] == "shortest" else None
        self.preprocess = Preprocess(size, crop, tuple(config["mean"]), tuple(config["std"]))
        self.tokenizer: Any = open_clip.get_tokenizer(architecture)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def _text_rows(self, texts: list[str]) -> Tensor:
        if hasattr(self.tokenizer, "encode"):  # the tokenizers of transformers have none here
            most = self.tokenizer.context_length - 2  # its beginning and end
            for text in texts:
                if len(tokens := self.tokenizer.encode(text)) > most:
                    log_cut(text, tokens, most, self.tokenizer.decode, "CLIP")
        return self.model.encode_text(self.tokenizer(texts).to(self.device))
