import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks.factorize import ROUTES, Options, attention_shapes, full_lu, full_svd, main
from loldu import ldu

SMALLEST = ["--block_out_channels", "32", "32", "32", "32", "--cross_attention_dim", "16"]


def test_the_shapes_are_those_of_stable_diffusion() -> None:
    shapes = attention_shapes(Options())
    assert len(shapes) == 128
    assert set(shapes) == {(width, size) for width in (320, 640, 1280) for size in (width, 768)}
    assert sum(size == 768 for _, size in shapes) == 32  # to_k and to_v of 16 cross-attentions


@pytest.mark.parametrize("shape", [(12, 12), (12, 20), (20, 12)])
def test_factors_of_the_peers_multiply_to_the_weight(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    permutation, lower, diagonal, upper = full_lu(weight, 12)
    torch.testing.assert_close(permutation @ (lower * diagonal) @ upper, weight)
    ours = ldu(weight, 5)
    _, _, cut, rows = full_lu(weight, 5)
    torch.testing.assert_close(ours.diagonal, cut, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.right, rows, atol=1e-4, rtol=1e-4)
    u, s, vh = full_svd(weight, 12)
    torch.testing.assert_close((u * s) @ vh, weight)


def test_the_record_has_its_settings_and_times(tmp_path: Path) -> None:
    output = tmp_path / "factorize.json"
    flags = [*SMALLEST, "--rank", "4", "--repetitions", "2", "--seed", "1"]
    flags += ["--large_size", "40", "--large_rank", "8"]
    main([*flags, "--output", str(output)])
    result = json.loads(output.read_text())

    assert result["command"].startswith("python -m benchmarks.factorize --block_out_channels 32")
    assert result["versions"]["torch"] == version("torch")
    assert set(result["machine"]) == {"cpu", "cores", "threads", "system"}
    assert result["machine"]["cpu"]
    assert result["seed"] == 1
    unet, large = result["cases"]
    assert (unet["rank"], unet["repetitions"], unet["layers"]) == (4, 2, 128)
    assert (large["rank"], large["layers"]) == (8, 1)
    assert sum(shape["layers"] for shape in unet["shapes"]) == 128

    routes = unet["routes"]
    assert {name for name, route in routes.items() if route["scaled_to_all_layers"]} == {
        "svd",
        "pissa_layer",
    }
    assert all(
        route["layers_timed"] == (2 if route["scaled_to_all_layers"] else 128)
        for route in routes.values()
    )
    for case in (unet, large):
        assert set(case["times_as_long_as_ldu"]) == set(routes) - {"ldu"}
        for spread in (
            *(route["seconds"] for route in case["routes"].values()),
            *case["times_as_long_as_ldu"].values(),
        ):
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_an_adapted_layer_computes_with_its_weight() -> None:
    weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    x = torch.eye(10)
    for name in ("loldu_layer", "pissa_layer", "pissa_niter_16_layer"):
        model = ROUTES[name].factorize(weight.clone(), 3)
        torch.testing.assert_close(model(x), weight.T)
