"""The change of a layer by an adapter, against dense formulas."""

import copy
import itertools
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from loldu import LoLDUConfig, any_base, project
from loldu.adapter.diagonal import DIAGONAL_INITS
from loldu.adapter.linear import Linear

PRESERVING = ("ldu", "uniform", "normal", "constant")
PERTURBING = ("zeros", "ones", "standard_uniform", "standard_normal")


def adapt(weight: Tensor, **options: object) -> tuple[PeftModel, Linear]:
    """A one-layer model with the given weight, and its adapted layer."""
    base = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    base[0].weight.data = weight.clone()
    model = get_peft_model(base, LoLDUConfig(target_modules=["0"], **options))
    return model, model.base_model.model[0]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_delta_weight(
    weight: Tensor, dz: Tensor, *, scale: float, z: Tensor, kept: Tensor
) -> Tensor:
    """``s P L_r diag(z + dz - kept) U_r`` with the factors of LAPACK's LU."""
    permutation, lower, upper = torch.linalg.lu(weight.double())
    r = len(dz)
    unit = upper[:r] / upper.diagonal()[:r, None]
    return scale * (permutation @ lower)[:, :r] @ torch.diag((z + dz - kept).double()) @ unit


@pytest.mark.parametrize("residual", ["preserve", "perturb"])
@pytest.mark.parametrize("init", DIAGONAL_INITS)
def test_eight_inits_change_the_weight_like_the_published_code(init: str, residual: str) -> None:
    weight, dz = gaussian(48, 48), 0.1 * gaussian(6, seed=1)
    model, layer = adapt(weight, r=6, alpha=3.0, diagonal_init=init, residual=residual)
    diagonal = layer.diagonal("default")
    d = torch.linalg.lu(weight.double())[2].diagonal()[:6]
    kept = diagonal.z_ref if residual == "preserve" else d
    z = {"ldu": d, "constant": d.mean(), "zeros": 0.0, "ones": 1.0}.get(init, diagonal.z_ref)
    with torch.no_grad():
        diagonal.dz.copy_(dz)
    expected = reference_delta_weight(
        weight, dz, scale=0.5, z=torch.as_tensor(z).double().expand(6), kept=kept
    )
    x = gaussian(5, 48, seed=2)
    torch.testing.assert_close(
        layer.get_delta_weight("default").double(), expected, atol=1e-5, rtol=1e-5
    )
    y = x @ (weight + expected).float().T + layer.bias
    torch.testing.assert_close(model(x), y, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("init", PERTURBING)
def test_the_published_perturbing_inits_move_the_output_before_training(init: str) -> None:
    weight, x = gaussian(48, 48), gaussian(5, 48, seed=2)
    model, _layer = adapt(weight, r=48, diagonal_init=init, residual="perturb")
    with model.disable_adapter():
        before = model(x)
    assert (model(x) - before).abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("init", DIAGONAL_INITS)
@pytest.mark.parametrize("factorization", ["ldu", "svd"])
def test_preserving_starts_equal_the_base_bit_by_bit(
    init: str, dtype: torch.dtype, factorization: str
) -> None:
    base = nn.Sequential(nn.Linear(20, 28), nn.Linear(28, 9)).to(dtype)
    # The third pivot of the second layer is 1e-5: its row of A would overflow float16.
    base[1].weight.data[:, 1:3] = 0
    base[1].weight.data[0, 1:3] = 8
    base[1].weight.data[3, 2] = 1e-5
    base[1].weight.data[5, 0] = 8
    x = gaussian(6, 20).to(dtype)
    before = base(x)
    config = LoLDUConfig(
        r=64, diagonal_init=init, factorization=factorization, target_modules=["0", "1"]
    )
    model = get_peft_model(base, config)
    assert torch.equal(model(x), before)
    for module in model.modules():
        if isinstance(module, Linear):
            assert not module.diagonal("default").delta().any()


def train(model: nn.Module, x: Tensor, target: Tensor, steps: int = 40) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("train_scale", [False, True])
def test_preserving_inits_train_alike_while_the_scale_is_frozen(train_scale: bool) -> None:
    weight, x, target = gaussian(16, 24) / 5, gaussian(32, 24, seed=1), gaussian(32, 16, seed=2)
    deltas = []
    for init in PRESERVING:
        torch.manual_seed(0)
        model, layer = adapt(weight, r=12, diagonal_init=init, train_scale=train_scale)
        train(model, x, target)
        deltas.append(layer.get_delta_weight("default").detach())
    spread = max((delta - deltas[0]).abs().max().item() for delta in deltas)
    assert deltas[0].abs().max() > 0.05
    if train_scale:
        assert spread > 1e-3
    else:
        assert spread <= 1e-6


def test_gradient_is_that_of_the_published_formula() -> None:
    weight, x, g = gaussian(18, 14), gaussian(5, 14, seed=1), gaussian(5, 18, seed=2)
    model, layer = adapt(weight, r=7, alpha=3.5)
    (model(x) * g).sum().backward()
    permutation, lower, upper = torch.linalg.lu(weight)
    written = g @ (permutation @ lower)[:, :7]
    read = x @ (upper[:7] / upper.diagonal()[:7, None]).T
    expected = 0.5 * (written * read).sum(0)
    diagonal = layer.diagonal("default")
    torch.testing.assert_close(diagonal.dz.grad, expected, rtol=1e-4, atol=1e-4)
    expected_ds = (2 * expected * upper.diagonal()[:7]).sum()
    torch.testing.assert_close(diagonal.ds.grad.squeeze(), expected_ds, rtol=1e-4, atol=1e-3)


def test_sigma_starts_at_alpha_over_the_rank_asked_for() -> None:
    _, layer = adapt(gaussian(8, 12), r=64, alpha=16.0)
    assert layer.r["default"] == 8
    assert layer.diagonal("default").sigma_0 == 0.25
    _, layer = adapt(gaussian(8, 12), r=64)
    assert layer.diagonal("default").sigma_0 == 1.0


def test_random_starts_follow_the_seed_alone() -> None:
    starts = []
    for seed, torch_seed in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(torch_seed)
        _, layer = adapt(gaussian(8, 12), r=4, diagonal_init="uniform", seed=seed)
        starts.append(layer.diagonal("default").z_ref)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_projection_brings_a_model_back_onto_the_ball() -> None:
    model, layer = adapt(gaussian(16, 12), r=6)
    train(model, gaussian(8, 12, seed=1), gaussian(8, 16, seed=2), steps=10)
    before = layer.get_delta_weight("default").detach()
    project(model, 1e6)
    assert torch.equal(layer.get_delta_weight("default"), before)
    project(model, 0.1)
    after = layer.get_delta_weight("default").detach()
    assert layer.delta_norm("default").item() == pytest.approx(0.1, rel=1e-5)
    torch.testing.assert_close(after, before / before.norm() * 0.1, rtol=1e-4, atol=1e-6)


class NoWaiting(TorchDispatchMode):
    """Fail on operations that make the host wait for a device: reading or copying values."""

    def __torch_dispatch__(
        self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        waits = func is torch.ops.aten._local_scalar_dense.default or (
            func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None
        )
        assert not waits, f"{func} makes the host wait"
        return func(*args, **kwargs)


@pytest.mark.parametrize("radius", [0.1, 1e6])
def test_projection_and_forward_never_wait_for_the_device(radius: float) -> None:
    model, layer = adapt(gaussian(16, 12), r=6)
    x = gaussian(8, 12, seed=1)
    train(model, x, gaussian(8, 16, seed=2), steps=3)
    project(model, radius)
    before = layer.get_delta_weight("default").detach()
    with NoWaiting(), torch.no_grad():
        project(model, radius / 2)
        model(x)
    expected = before * min(1.0, radius / 2 / before.norm().item())
    torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=1e-4, atol=1e-6)


def two_adapters(**second: object) -> tuple[PeftModel, Linear, Tensor]:
    """Return a layer with two random adapters, 'default' of rank 4 and 'other', and an input."""
    weight = gaussian(16, 12)
    model, layer = adapt(weight, r=4, init_weights=False)
    options = {"r": 9, "seed": 1} | second
    model.add_adapter("other", LoLDUConfig(target_modules=["0"], init_weights=False, **options))
    return model, layer, gaussian(5, 12, seed=3)


def dense_output(layer: Linear, x: Tensor, **strengths: float) -> Tensor:
    weight = layer.base_weight() + sum(
        strength * layer.get_delta_weight(name) for name, strength in strengths.items()
    )
    return x @ weight.T + layer.bias


@pytest.mark.parametrize("second", [{}, {"factorization": "svd"}, {"pivoting": "complete"}])
def test_several_adapters_add_up(second: dict[str, object]) -> None:
    model, layer, x = two_adapters(**second)
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(x), dense_output(layer, x, default=1, other=1))
    model.set_adapter("other")
    torch.testing.assert_close(model(x), dense_output(layer, x, other=1))


def test_adapters_of_a_layer_share_one_factor_pair_of_the_largest_rank() -> None:
    model, layer, _ = two_adapters()
    assert layer.factors["default"] is layer.factors["other"]
    assert layer.factors["default"].rank == 9
    held = layer.factors["other"]
    model.add_adapter("third", LoLDUConfig(target_modules=["0"], r=7))
    assert layer.factors["third"] is held
    model.add_adapter("svd", LoLDUConfig(target_modules=["0"], r=7, factorization="svd"))
    assert layer.factors["svd"] is not held
    for name in ("third", "other"):
        model.delete_adapter(name)
        assert name not in layer.factors


def test_strength_scales_the_change() -> None:
    _, layer, x = two_adapters()
    full = layer.get_delta_weight("default")
    layer.set_scale("default", 0.5)
    torch.testing.assert_close(layer.get_delta_weight("default"), 0.5 * full)
    layer.scale_layer(3.0)
    torch.testing.assert_close(layer.get_delta_weight("default"), 1.5 * full)
    layer.unscale_layer(3.0)
    torch.testing.assert_close(layer.get_delta_weight("default"), 0.5 * full)
    layer.unscale_layer()
    assert torch.equal(layer.get_delta_weight("default"), full)
    layer.set_scale("default", 0.0)
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_is_undone_bit_by_bit(dtype: torch.dtype) -> None:
    model, layer, x = two_adapters()
    model.to(dtype)
    x = x.to(dtype)
    before, live = layer.base_weight().clone(), model(x)
    model.merge_adapter(safe_merge=True)
    assert layer.merged
    tolerance = 4 * torch.finfo(dtype).eps * live.abs().max().item()
    torch.testing.assert_close(model(x), live, atol=tolerance, rtol=0)
    expected = (before.float() + layer.get_delta_weight("default")).to(dtype)
    torch.testing.assert_close(layer.weight.data, expected)
    with pytest.warns(UserWarning, match="additionally merging other"):
        model.merge_adapter(["other"])
    model.unmerge_adapter()
    assert torch.equal(layer.weight, before)
    assert torch.equal(model(x), live)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_safe_merge_refuses_values_that_are_not_finite() -> None:
    model, layer, _ = two_adapters()
    before = layer.base_weight().clone()
    torch.nn.init.constant_(layer.diagonal("default").dz, torch.inf)
    with pytest.raises(ValueError, match=r"The adapter default seems .* \(layer '0'\)"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.weight, before)
    assert not layer.merged


def test_merge_and_unload_leaves_plain_layers() -> None:
    model, _, x = two_adapters()
    live = model(x)
    merged = model.merge_and_unload()
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), live)


def test_unload_restores_the_base() -> None:
    model, _layer, x = two_adapters()
    with model.disable_adapter():
        base = model(x)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    assert torch.equal(model.unload()(x), base)


def test_casting_the_base_refactors_it_at_the_same_pivots() -> None:
    model, layer, x = two_adapters()
    pivots = layer.diagonal("default").pivots.clone()
    model.to(torch.bfloat16)
    diagonal = layer.diagonal("default")
    assert diagonal.dz.dtype == torch.float32
    assert torch.equal(diagonal.pivots, pivots)
    assert model(x.bfloat16()).dtype == torch.bfloat16
    _, fresh = adapt(layer.base_weight(), r=4)
    fresh.diagonal("default").load_state_dict(diagonal.state_dict())
    fresh.follow_pivots()
    assert torch.equal(fresh.get_delta_weight("default"), layer.get_delta_weight("default"))


def test_casting_the_base_keeps_the_directions_of_an_svd() -> None:
    model, layer = adapt(gaussian(40, 40), r=40, factorization="svd", init_weights=False)
    before = layer.get_delta_weight("default")
    model.to(torch.bfloat16)
    error = layer.get_delta_weight("default") - before
    assert layer.factors_of("default").left.dtype == torch.bfloat16
    assert error.norm() <= 0.01 * before.norm()


def test_factors_follow_a_reloaded_base_weight() -> None:
    model, layer, _ = two_adapters()
    old = layer.get_delta_weight("default")
    state = model.state_dict()
    state["base_model.model.0.base_layer.weight"] = 2 * layer.base_weight()
    model.load_state_dict(state)
    # L and U of 2W are those of W.
    torch.testing.assert_close(layer.get_delta_weight("default"), old)
    state["base_model.model.0.base_layer.weight"] = gaussian(16, 12, seed=9)
    model.load_state_dict(state)
    weight = gaussian(16, 12, seed=9)
    rows = layer.diagonal("default").pivots.long()
    core = weight[rows][:, :4].double()
    # B = C U11^-1 and A = (L11 D)^-1 R, so B diag(d) A = C (W[rows, :4])^-1 R.
    shared = layer.factors_of("default")
    product = (shared.left[:, :4] * (shared.diagonal * shared.gain)[:4]) @ shared.right[:4]
    skeleton = weight[:, :4].double() @ torch.linalg.inv(core) @ weight[rows].double()
    torch.testing.assert_close(product.double(), skeleton, rtol=1e-3, atol=1e-3)


def test_factors_follow_pivots_that_were_written_behind_the_layer() -> None:
    model, layer, x = two_adapters()
    model(x)
    weight, rows = layer.base_weight().double(), torch.tensor([11, 2, 7, 0])
    minors = [torch.linalg.det(weight[rows[:k], :k]) for k in range(5)]
    d = torch.stack([after / before for before, after in itertools.pairwise(minors)])
    diagonal = layer.diagonal("default")
    assert not torch.equal(diagonal.pivots, rows.int())
    with torch.no_grad():
        diagonal.dz.copy_(d)
    # B diag(d) A = C (W[rows, :4])^-1 R, whatever L and U are.
    skeleton = weight[:, :4] @ torch.linalg.inv(weight[rows, :4]) @ weight[rows]
    expected = (x.double() @ (weight + skeleton).T + layer.bias).float()
    assert not torch.allclose(model(x), expected, rtol=1e-3, atol=1e-3)
    with any_base():  # no base chooses these rows
        diagonal.pivots.copy_(rows)
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)
        diagonal.pivots = diagonal.pivots.flip(0)
        assert not torch.allclose(model(x), expected, rtol=1e-3, atol=1e-3)
        diagonal.pivots = diagonal.pivots.flip(0)
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"pivoting": "complete"}, {"factorization": "svd"}])
def test_along_every_normalized_direction_a_step_changes_the_weight_as_much(
    options: dict[str, str], dtype: torch.dtype
) -> None:
    _, layer = adapt(gaussian(12, 16), r=8, normalize_directions=True, **options)
    plain, _ = adapt(gaussian(12, 16), r=8, **options)
    layer.to(dtype)
    dz = layer.diagonal("default").dz
    norms = []
    for direction in range(8):
        with torch.no_grad():
            dz.zero_()
            dz[direction] = 1.0
        norms.append(layer.get_delta_weight("default").norm().item())
    assert norms == pytest.approx([1.0] * 8, rel=1e-5 if dtype == torch.float32 else 1e-2)
    theirs = plain.base_model.model[0]
    with torch.no_grad():
        theirs.diagonal("default").dz[0] = 1.0
    norm = theirs.get_delta_weight("default").norm().item()
    assert (norm == pytest.approx(1)) == ("factorization" in options)


def test_a_dropped_direction_has_a_finite_unit() -> None:
    weight = gaussian(10, 8)
    weight[:, 1] = 0
    with pytest.warns(UserWarning, match="1 of 4"):
        _, layer = adapt(weight, r=4, normalize_directions=True)
    assert layer.diagonal("default").unit[1] == 1


def test_a_dropped_direction_is_reported_with_its_layer_and_cure() -> None:
    weight = gaussian(10, 8)
    weight[:, 1] = 0
    with pytest.warns(UserWarning, match=r"layer '0': 1 of 4 .* pivoting=\"complete\""):
        model, layer = adapt(weight, r=4, diagonal_init="constant", residual="preserve")
    assert layer.diagonal("default").z_ref[1] == 0
    train(model, gaussian(4, 8), gaussian(4, 10))
    assert torch.isfinite(layer.get_delta_weight("default")).all()
    adapt(weight, r=4, pivoting="complete")


def test_a_layer_with_nothing_to_factor_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"layer '0' has nothing to factor.*exclude_modules"):
        adapt(torch.zeros(4, 4), r=2)
    with pytest.raises(ValueError, match="layer '0': the weight has entries that are not finite"):
        adapt(torch.full((4, 4), torch.nan), r=2)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(copier: object) -> None:
    model, _, x = two_adapters()
    assert torch.equal(copier(model)(x), model(x))


def test_autocast_trains_in_float32() -> None:
    model, layer, x = two_adapters()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert layer.diagonal("default").dz.grad.dtype == torch.float32
    expected = dense_output(layer, x, default=1)
    assert (y - expected).abs().max() <= 0.03 * expected.abs().max()
