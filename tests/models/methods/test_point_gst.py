"""PointGST: its adapter written out in numpy, its spectra, its start, and the count that its program reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pointsweep.config.methods import PointGSTConfig
from pointsweep.config.validation import trial_from_dict
from pointsweep.models.methods.point_gst import SpectralAdapter, basis_of, spectra_of, z_order
from pointsweep.models.point_model import build, count_parameters, load_trained_state, trained_state
from tests.models.methods.test_published_counts import MAE


def points(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, count, 3, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


def test_the_count_is_the_programs():
    """0.6M in the program's table for Point-MAE, 0.62M as others count it."""
    with torch.device("meta"):
        counts = count_parameters(build(trial_from_dict(MAE | {"method": "point_gst"}), 15))
    adapter = (384 * 36 + 36) + (36 * 384 + 384) + (36 * 36 + 36) + 2 * 2 * 36
    head = (768 * 256 + 256) + (256 * 256 + 256) + 2 * 2 * 256 + (256 * 15 + 15)
    assert counts.trainable == 12 * adapter + head + 2 * 384 == 622_831


def laplacian(places: np.ndarray) -> np.ndarray:
    """Of centres (S, 3), entry by entry."""
    size = len(places)
    distances = [[float(np.sqrt(((places[i] - places[j]) ** 2).sum())) for j in range(size)] for i in range(size)]
    smallest = min(distances[i][j] for i in range(size) for j in range(size) if distances[i][j] > 0)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            if i != j:
                weight = smallest / distances[i][j] if distances[i][j] > 0 else 1.0
                found[i, j] = -weight
                found[i, i] += weight
    return found


def test_a_basis_holds_the_eigenvectors_of_the_laplacian():
    centers = points(7)
    centers[0, 3] = centers[0, 5]  # two centres in one place
    basis = basis_of(centers).numpy()
    for own, places in zip(basis, centers.numpy(), strict=True):
        values = np.linalg.eigvalsh(laplacian(places))
        np.testing.assert_allclose(own.T @ own, np.eye(7), atol=1e-12)
        np.testing.assert_allclose(laplacian(places) @ own, own * values, atol=1e-12)
        np.testing.assert_allclose(own[:, 0], np.full(7, 7**-0.5), atol=1e-12)  # of frequency zero: constant
        assert (own[np.abs(own).argmax(axis=0), np.arange(7)] > 0).all()


def test_a_basis_of_one_place_alone_is_finite():
    assert basis_of(torch.zeros(1, 4, 3)).isfinite().all()


def test_the_curve_visits_a_grid_in_z_order():
    cells = torch.tensor([[x, y, z] for z in (0.0, 1.0) for y in (0.0, 1.0) for x in (0.0, 1.0)]).double()
    shuffled = cells[torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])]
    in_order = shuffled[z_order(5 * shuffled.unsqueeze(0) - 3)[0].argsort()]
    assert torch.equal(in_order, cells)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def normed(layer: torch.nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + layer.eps)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


@pytest.mark.parametrize("transform", ["fourier", "program"])
@pytest.mark.parametrize("scopes", ["both", "global", "local"])
def test_an_adapter_by_its_formula(transform, scopes):
    """Every cloud, every local graph by itself; one class token stands in front."""
    adapter = SpectralAdapter(10, PointGSTConfig(bottleneck=5, transform=transform, scopes=scopes)).double()
    for number, parameter in enumerate(adapter.parameters()):
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    centers = points(8)
    spectra = spectra_of(centers, 4)
    tokens = torch.randn(2, 9, 10, generator=torch.Generator().manual_seed(9)).double()
    found = adapter(tokens, spectra).detach().numpy()

    def tuned(values: np.ndarray, places: torch.Tensor, norm: torch.nn.LayerNorm) -> np.ndarray:
        basis = basis_of(places.unsqueeze(0))[0].numpy()
        there, home = (basis, basis.T) if transform == "program" else (basis.T, basis)
        spectrum = there @ values
        return home @ (spectrum + silu(linear(adapter.tune, normed(norm, spectrum))))

    for cloud in range(2):
        low = linear(adapter.down, tokens[cloud].numpy())
        wide = silu(low)
        values = low[1:]
        if scopes != "local":
            wide[1:] += tuned(values, centers[cloud], adapter.norm_whole)
        if scopes != "global":
            order = z_order(centers)[cloud].sort(stable=True).indices
            for group in order.split(4):
                wide[1 + group.numpy()] += tuned(values[group.numpy()], centers[cloud][group], adapter.norm_local)
        np.testing.assert_allclose(found[cloud], linear(adapter.up, wide), rtol=1e-9, atol=1e-9)


def trial(method: str | dict, tokens: int = 6) -> dict:
    return {
        "dataset": "synthetic",
        "tokenizer": {"name": "patch", "num_tokens": tokens, "neighbours": 6},
        "backbone": {"name": "tiny", "modality": "3d"},
        "method": method,
    }


def test_it_reads_the_stream_between_the_branches_and_adds_behind_the_second():
    made = build(trial_from_dict(trial("point_gst")), 5).double().eval()
    for adapter in made.method.adapters:
        torch.nn.init.normal_(adapter.up.weight)
    clouds = points(40)
    tokens, centers = made.tokenizer(clouds)
    context = made.method.begin(0, tokens, centers, None, None)[1]
    block = made.backbone.blocks[0]
    stream = tokens + block.attn(block.norm1(tokens))
    wanted = stream + block.ffn(block.norm2(stream)) + made.method.adapters[0](stream, context.spectra)
    torch.testing.assert_close(made._run(block, 0, tokens, context, None), wanted)


def test_it_starts_as_the_frozen_model():
    made, plain = (build(trial_from_dict(trial(name)), 5).eval() for name in ("point_gst", "head_only"))
    own = trained_state(plain)
    load_trained_state(plain, {name: trained_state(made).get(name, own[name]) for name in own})
    with torch.no_grad():
        assert torch.equal(made(points(40).float()), plain(points(40).float()))


def test_a_graph_size_that_does_not_divide_the_tokens_is_refused():
    made = build(trial_from_dict(trial({"name": "point_gst", "local_size": 4})), 5).eval()
    with pytest.raises(
        ValueError, match="method.local_size: 6 tokens cannot be shared out among local graphs of 4; allowed: 1, 2, 3, 6"
    ):
        made(points(40).float())
