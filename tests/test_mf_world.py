"""Worlds, poses and steps against a second implementation and by hand."""
import math
import subprocess
import sys
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from llmwatch_course.memory_forcing import world as W

def pure_mix(*values):
    "The hash in Python's own integers."
    h = 0x9E3779B9
    for v in values:
        h = (h ^ v) & W.LOW
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)): h = (h ^ (h >> shift)) * factor & W.LOW
        h ^= h >> 16
    return h

@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4))
def test_three_ways_to_mix(values):
    assert int(W.mix(*values)) == pure_mix(*values) == int(W.numpy_mix(*values).item())

def test_mix_broadcasts_and_takes_negative_numbers():
    x, z = torch.arange(-3, 4).view(-1, 1), torch.arange(-2, 3).view(1, -1)
    got = W.mix(7, x, z)
    assert got.shape == (7, 5) and got.unique().numel() == 35
    assert got[0, 1] == pure_mix(7, -3 & W.LOW, -1 & W.LOW)

@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), style=st.sampled_from(list(W.STYLES)), size=st.sampled_from([(64, 16, 64), (20, 16, 33)]))
def test_numpy_and_torch_build_the_same_world(seed, style, size):
    assert np.array_equal(W.BlockWorld(seed, size, style).blocks[0].numpy(), W.numpy_blocks(seed, size, style))

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_world_on_a_gpu():
    for style in W.STYLES: assert W.BlockWorld(range(64), style=style, device="cuda").blocks.cpu().equal(W.BlockWorld(range(64), style=style).blocks)

def test_known_world():
    "Checkpoints are trained on these worlds: they must never change."
    world = W.BlockWorld(range(8))
    digest = int((world.blocks.long().flatten() * torch.arange(world.blocks.numel()).remainder(65521)).sum())
    assert digest == 13427987249

def test_seeds_splits_styles():
    assert W.BlockWorld([3, 9]).blocks[1].equal(W.BlockWorld(9).blocks[0])
    assert not W.BlockWorld(1).blocks.equal(W.BlockWorld(2).blocks)
    for bad in ([], -1, 2**32): pytest.raises(ValueError, W.BlockWorld, bad)
    with pytest.raises(ValueError, match="did you mean 'snow'"): W.BlockWorld(0, style="snwo")
    splits = list(W.SPLITS.values())
    assert all(a.stop <= b.start for a, b in zip(splits, splits[1:]))
    for style in W.STYLES.values():
        assert style.palette.shape == W.PALETTE.shape and style.palette[W.FIRST_LANDMARK:].equal(W.PALETTE[W.FIRST_LANDMARK:])
        assert style.ground + style.hills + style.bumps + 4 < 16  # nothing sticks out of the world

def test_columns_are_what_the_text_says():
    world = W.BlockWorld(range(20))
    blocks, heights = world.blocks, world.heights
    y = torch.arange(16).view(1, 1, -1, 1)
    ground = (blocks != W.AIR) & (blocks < W.FIRST_LANDMARK)
    assert ground.equal(y.expand_as(blocks) < heights[:, :, None])
    tall = (blocks >= W.FIRST_LANDMARK).sum(2)
    assert set(tall[world.pillars].tolist()) == {2, 3, 4} and (tall[~world.pillars] == 0).all()
    assert .04 < world.pillars.float().mean() < .06
    again = W.BlockWorld.of(blocks)
    assert again.heights.equal(heights) and again.pillars.equal(world.pillars) and again.size == world.size and again.n == 20

def test_opposite_steps_cancel():
    assert torch.equal(W.AHEAD[8:], -W.AHEAD[:8])
    for i in range(16):  # a quarter turn right, by the camera's convention
        x, z = W.AHEAD[i].tolist()
        assert W.AHEAD[(i + 4) % 16].tolist() == [-z, x]
        assert math.atan2(-x, z) % (2 * math.pi) == pytest.approx(i * W.ANGLE, abs=.04)

@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.lists(st.sampled_from(range(9)), min_size=1, max_size=40))
def test_every_unblocked_walk_can_be_undone(seed, actions):
    undo = {W.FORWARD: W.BACK, W.LEFT: W.RIGHT, W.TURN_LEFT: W.TURN_RIGHT, W.NOOP: W.NOOP}
    undo |= {b: a for a, b in undo.items()}
    world = W.BlockWorld(seed)
    pose = home = W.start(world, torch.Generator().manual_seed(seed))
    done = []
    for a in actions:
        if a not in undo: continue
        pose, blocked = W.step(world, pose, torch.tensor([a]))
        if not blocked: done.append(a)
    for a in reversed(done): pose, _ = W.step(world, pose, torch.tensor([undo[a]]))
    assert pose.equal(home)
    assert all(a.equal(b) for a, b in zip(W.where(world, pose[:, None]), W.where(world, home[:, None])))

def test_refusals():
    blocks = torch.zeros(2, 16, 16, 16, dtype=torch.uint8)
    blocks[0, 8, :2, 9] = W.FIRST_LANDMARK
    world = W.BlockWorld.of(blocks)
    pose = torch.tensor([[8 * 64 + 32, 8 * 64 + 40, 0, 0]] * 2)
    new, blocked = W.step(world, pose, torch.tensor([W.FORWARD] * 2))
    assert blocked.tolist() == [True, False] and new[0].equal(pose[0]) and new[1, 1] == pose[1, 1] + 32
    for yaw in range(16):  # walk far in any direction: never past the edge, never an error
        p = torch.tensor([[8 * 64, 8 * 64, yaw, 0]] * 2)
        for _ in range(40): p, blocked = W.step(world, p, torch.tensor([W.FORWARD] * 2))
        assert blocked.all() and ((p[:, :2] >= 3 * 64) & (p[:, :2] < 13 * 64)).all()
    looks = pose
    for _ in range(9): looks, _ = W.step(world, looks, torch.tensor([W.LOOK_UP, W.LOOK_DOWN]))
    assert looks[:, 3].tolist() == [2, -2]

def test_where_and_start():
    world = W.BlockWorld(range(200))
    pose = W.start(world, torch.Generator().manual_seed(0))
    assert pose.equal(W.start(world, torch.Generator().manual_seed(0)))
    cell = pose[:, :2] // 64
    assert not world.pillars[torch.arange(200), cell[:, 0], cell[:, 1]].any()
    R, C = W.where(world, pose[:, None])
    assert R.shape == (200, 1, 3, 3) and C.shape == (200, 1, 3) and C.dtype == torch.float32
    height = C[:, 0, 1] - world.heights[torch.arange(200), cell[:, 0], cell[:, 1]]
    torch.testing.assert_close(height, torch.full_like(height, 1.62))
    with pytest.raises(ValueError, match="poses of 1 worlds"): W.where(world, pose[:1, None])
    with pytest.raises(ValueError, match="no free place"):
        W.start(W.BlockWorld.of(torch.full((1, 16, 8, 16), W.FIRST_LANDMARK, dtype=torch.uint8)), torch.Generator())

def test_needs_torch_and_numpy_only():
    code = "import sys; import llmwatch_course.memory_forcing.render; bad = {'matplotlib', 'einops', 'torchmetrics', 'scipy', 'transformers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
