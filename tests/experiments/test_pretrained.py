"""The digest of a base, and the error without one."""

import pytest
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

from experiments.pretrained import facts_of, fetching
from loldu.errors import LoLDUError

SMALL = RobertaConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_digest_covers_the_base_without_its_head(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(SMALL).to(dtype)
    facts = facts_of(model)
    assert facts["base_parameters"] == sum(p.numel() for p in model.roberta.parameters())
    with torch.no_grad():
        model.classifier.dense.weight.add_(1)
    assert facts_of(model) == facts
    with torch.no_grad():
        model.roberta.embeddings.word_embeddings.weight[3, 3] += 0.5
    assert facts_of(model)["base"] != facts["base"]


def test_an_unavailable_model_gives_one_clear_error() -> None:
    with (
        pytest.raises(LoLDUError, match=r"The model \./nowhere is neither") as error,
        fetching("./nowhere"),
    ):
        RobertaForMaskedLM.from_pretrained("./nowhere")
    assert "\n" not in str(error.value)
