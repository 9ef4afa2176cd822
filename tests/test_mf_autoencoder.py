"""The frame coder: shapes, normalised latents, determinism, shipped checkpoints on unseen worlds."""
import pytest
import torch
from torch.testing import assert_close
from llmwatch_course.foundations.training import load_weights, save_weights
from llmwatch_course.memory_forcing.autoencoder import CODERS, FrameCoder, load_coder, normalise, snapshots, train_coder
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.world import SPLITS


@pytest.fixture(scope="module")
def strips(): return snapshots(SPLITS["train"][:6], 8, Camera(8, 32))


@pytest.mark.parametrize("H, W", [(8, 32), (32, 32), (4, 4), (12, 20)])
def test_shapes(H, W):
    coder = FrameCoder(width=8, channels=5)
    latents = coder.encode(torch.rand(2, 3, H, W))
    assert latents.shape == (2, 5, H // 4, W // 4)
    assert coder.decode(9 * latents).shape == (2, 3, H, W)
    assert coder.decode(9 * latents).min() >= 0 and coder.decode(9 * latents).max() <= 1


def test_sides_must_be_multiples_of_four():
    with pytest.raises(ValueError, match=r"multiples of 4, not \(8, 30\)"): FrameCoder(8).encode(torch.zeros(1, 3, 8, 30))


def test_snapshots(strips):
    assert strips.shape == (48, 3, 8, 32) and strips.min() >= 0 and strips.max() <= 1
    assert torch.equal(strips, snapshots(SPLITS["train"][:6], 8, Camera(8, 32))) and not torch.equal(strips, snapshots(SPLITS["train"][:6], 8, Camera(8, 32), seed=1))


def test_normalising_changes_no_picture(strips):
    torch.manual_seed(0)
    coder = FrameCoder(8).requires_grad_(False)
    before = coder.draw(coder.encode(strips))
    normalise(coder, strips)
    latents = coder.encode(strips)
    assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0); assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)
    assert_close(coder.draw(latents), before, atol=1e-4, rtol=0)


def test_training(strips, tmp_path):
    coder, history = train_coder(strips, 100, width=8)
    assert history[-1]["loss"] < history[0]["loss"] / 2 and not coder.training
    again, _ = train_coder(strips, 100, width=8)
    assert all(torch.equal(a, b) for a, b in zip(coder.state_dict().values(), again.state_dict().values()))
    save_weights(coder, tmp_path / "coder.safetensors")
    assert_close(load_weights(FrameCoder(8), tmp_path / "coder.safetensors").encode(strips), coder.encode(strips), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name, least", [("mf-coder-strip", 23), ("mf-coder-32", 27)])
def test_shipped(name, least):
    rgb, coder = snapshots(SPLITS["test"][:8], 8, CODERS[name]), load_coder(name)
    assert (-10 * (coder.decode(coder.encode(rgb)) - rgb).square().mean((1, 2, 3)).log10()).mean() > least
    assert coder.encode(rgb).std((0, 2, 3)).sub(1).abs().max() < 0.25
    assert load_coder(name) is coder and not any(p.requires_grad for p in coder.parameters())


def test_unknown_coder():
    with pytest.raises(ValueError, match="did you mean 'mf-coder-32'"): load_coder("mf-coder-23")
