import json
from pathlib import Path

import pytest
import torch

from benchmarks import routes


def test_the_routes_compute_the_same() -> None:
    torch.manual_seed(0)
    x, weight, delta = torch.randn(5, 30), torch.randn(20, 30), torch.randn(4)
    with torch.no_grad():
        outputs = {name: call() for name, call in routes.routes(x, weight, 4, delta).items()}
    frozen = outputs.pop("frozen")
    torch.testing.assert_close(frozen, x @ weight.T)
    for y in outputs.values():
        torch.testing.assert_close(y, outputs["dense"], rtol=1e-4, atol=1e-4)
        assert (y - frozen).abs().max() > 0.1


def test_the_record_says_which_route_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "CASES", ((2, 16, 24, 4), (64, 16, 24, 4)))
    output = tmp_path / "routes.json"
    routes.main(["--repetitions", "2", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["command"].startswith("python -m benchmarks.routes --repetitions 2")
    assert [case["taken"] for case in result["cases"]] == ["factored", "dense"]
    for case in result["cases"]:
        assert set(case["times_as_long_as_frozen"]) == {"factored", "dense"}
