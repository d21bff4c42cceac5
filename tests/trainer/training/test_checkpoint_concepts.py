"""Every checkpoint holds the concept of its step."""

import json
from pathlib import Path

from loldu import read_concept
from tests.trainer.training.fake_scorer import FakeScorer
from trainer.__main__ import run
from trainer.options.preset import parse
from trainer.train_dreambooth_loldu import main

CONCEPT, WORD = "concept.safetensors", "learned_embeds.safetensors"
WORDS = ("--placeholder_token", "toyxx", "--initializer_token", "a", "--instance_prompt", "toyxx")


def test_a_checkpoint_concept_equals_that_of_a_run_that_ended_there(
    flags: list[str], tmp_path: Path
) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    averaged = ("--ema_decay", "0.9", "--max_delta_norm", "0.02")
    common = [*flags, *averaged, *WORDS, "--no_sample_at_end"]
    assert run([*common, "--output_dir", str(long), "--checkpointing_steps", "2"]) == 0
    assert run([*common, "--output_dir", str(short), "--max_train_steps", "2"]) == 0
    middle, end = (long / f"checkpoint-00000{step}" for step in (2, 4))
    for name in (CONCEPT, WORD):
        assert (end / name).read_bytes() == (long / name).read_bytes()
        assert (end / name).read_bytes() != (middle / name).read_bytes()
    assert (middle / WORD).read_bytes() == (short / WORD).read_bytes()
    ours, theirs = read_concept(middle / CONCEPT), read_concept(short / CONCEPT)
    assert [layer.delta.tolist() for layer in ours.layers] == [
        layer.delta.tolist() for layer in theirs.layers
    ]
    for concept in (ours, theirs):
        assert concept.metadata["steps"] == 2
        del concept.metadata["optimization"]["max_train_steps"]
    assert ours.metadata == theirs.metadata


def test_each_concept_has_its_own_checkpoint_with_its_scores(
    flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    toml, folder = tmp_path / "concepts.toml", tmp_path / "run"
    toml.write_text(
        "".join(
            f"[{name}]\ninstance_data_dir = '{pictures}'\ntoken = '{name}'\n"
            f"instance_prompt = 'a photo of {name}'\n"
            for name in ("sks", "zwx")
        )
    )
    index = flags.index("--instance_data_dir")
    own = [*flags[:index], *flags[index + 4 :], "--concepts", str(toml), "--no_sample_at_end"]
    scored = ["--validation_scores", "--validation_prompt", "sks", "zwx", "a toy"]
    scored += ["--validation_steps", "4", "--validation_images", "1"]
    argv = [*own, *scored, "--checkpointing_steps", "1", "--checkpoints_total_limit", "2"]
    main(parse(argv), FakeScorer(*(number / 10 for number in range(4))))
    last, before = folder / "checkpoint-000004", folder / "checkpoint-000003"
    assert sorted(folder.glob("checkpoint-*")) == [before, last]
    for name in ("sks", "zwx"):
        own = Path("concepts") / name / CONCEPT
        assert (last / own).read_bytes() == (folder / own).read_bytes()
        measured = (folder / own).with_name("validation.jsonl").read_text().splitlines()
        record = {"step": 4, **read_concept(last / own).metadata["scores"]}
        assert record == json.loads(measured[-1])
        assert "scores" not in read_concept(before / own).metadata  # step 3 was not scored


def test_other_methods_keep_their_state_alone(flags: list[str], tmp_path: Path) -> None:
    more = ["--method", "lora", "--no_sample_at_end", "--checkpointing_steps", "4"]
    assert run([*flags, *more]) == 0
    names = {path.name for path in (tmp_path / "run" / "checkpoint-000004").iterdir()}
    assert names == {"trained.safetensors", "optimizer.pt", "state.json", "config.toml"}
