"""The ways of training that are compared: trainer flags beside the pocket preset's own."""

from dataclasses import dataclass

WORD = "<new>"
_WORD_FLAGS = f"--placeholder_token {WORD} --word_lr 2e-2"
_UNITS = "--normalize_directions --learning_rate 5e-2"


@dataclass(frozen=True)
class Variant:
    """One way of training.

    Attributes:
        flags: Trainer flags in one string.
        colour: Of its curve: hues of one family for one method, told apart without red and green.
    """

    flags: str
    colour: str


VARIANTS = {
    "loldu-r8": Variant("--rank 8", "#79b4e3"),
    "loldu-r32": Variant("--rank 32", "#2b7cc4"),
    "loldu-full": Variant("", "#0b3c8c"),
    "loldu-full-units": Variant(_UNITS, "#5b3fd0"),
    "loldu-full-word": Variant(_WORD_FLAGS, "#12a39a"),
    "loldu-full-units-text": Variant(
        f"{_UNITS} --train_text_encoder --text_encoder_lr 2e-2", "#0a5f5a"
    ),
    "svfit-full": Variant("--method svfit --learning_rate 5e-2", "#a05fb4"),
    "lora-r4": Variant("--method lora --rank 4 --learning_rate 1e-3", "#f0a22e"),
    "lora-r32": Variant("--method lora --rank 32 --learning_rate 3e-4", "#b86a00"),
    "lora-r32-text": Variant(
        "--method lora --rank 32 --learning_rate 3e-4 --train_text_encoder", "#7a3b00"
    ),
    "dreambooth": Variant("--method dreambooth --learning_rate 1e-4", "#1b1f27"),
    # Nothing but a word is trained: there is no class to protect.
    "textual_inversion": Variant(
        f"--method textual_inversion {_WORD_FLAGS} --no_with_prior_preservation", "#8a8f98"
    ),
}
