import json
from pathlib import Path

from benchmarks.routed import WAYS, main


def test_every_way_of_drawing_is_timed(base_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "routed.json"
    flags = ["--base", str(base_folder), "--batch", "2", "--steps", "2", "--repetitions", "1"]
    main([*flags, "--output", str(output)])
    record = json.loads(output.read_text())
    assert [*record["seconds"]] == [*WAYS]
    times = {way: record["seconds"][way]["median"] for way in WAYS}
    share = times["routed"] / times["always on"]
    assert abs(record["routed_to_always_on"]["median"] - share) < 1e-2 * share
