"""Walks: what they promise, and what comes back from the disk."""
import multiprocessing
import os
import signal
import time
import pytest
import torch
from llmwatch_course.memory_forcing import trajectories as T
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.render import render
from llmwatch_course.memory_forcing.world import BACK, FORWARD, NOOP, SUB, TURN_LEFT, TURN_RIGHT, BlockWorld, start

STRIP = Camera(8, 32)

@pytest.fixture(scope="module")
def world(): return BlockWorld(range(12))

def gen(seed=0): return torch.Generator().manual_seed(seed)

@pytest.mark.parametrize("kind", T.KINDS)
def test_every_walk(world, kind):
    walk = T.KINDS[kind](world, 50, gen())
    assert walk.poses.shape == (12, 50, 4) and walk.actions.shape == walk.revisit.shape == (12, 50)
    assert (walk.actions[:, 0] == NOOP).all() and T.replay(world, walk.poses[:, 0], walk.actions)[0].equal(walk.poses)
    for poses, revisit in zip(walk.poses.tolist(), walk.revisit.tolist()):
        assert revisit == [poses.index(p) if poses.index(p) < t else -1 for t, p in enumerate(poses)]
    again = T.KINDS[kind](world, 50, gen())
    assert all(torch.equal(a, b) for a, b in zip(walk, again))
    assert not walk.poses.equal(T.KINDS[kind](world, 50, gen(1)).poses)

@pytest.mark.parametrize("frames", [1, 2, 18, 40])
@pytest.mark.parametrize("kind", T.KINDS)
def test_any_length(world, kind, frames): assert T.KINDS[kind](world, frames, gen()).poses.shape == (12, frames, 4)

def test_turntable_comes_back_every_16_frames(world):
    walk = T.turntable(world, 40, gen())
    assert walk.poses[:, 16:].equal(walk.poses[:, :-16]) and walk.revisit[:, 16:].equal((torch.arange(16, 40) % 16).expand(12, -1))

@pytest.mark.parametrize("kind, lap", [("there and back", 2 * 5 + 16), ("square loop", 4 * (3 + 4))])
def test_laps_come_back_unblocked(world, kind, lap):
    walk = {"there and back": lambda: T.there_and_back(world, 2 * lap + 1, gen(), out=5), "square loop": lambda: T.square_loop(world, 2 * lap + 1, gen(), edge=3)}[kind]()
    assert walk.poses[:, lap:].equal(walk.poses[:, :lap + 1]) and (walk.revisit[:, lap:] >= 0).all() and (walk.revisit[:, 1:lap] == -1).all()
    assert not T.replay(world, walk.poses[:, 0], walk.actions)[1].any()
    assert len(walk.poses[0, :, :2].unique(dim=0)) > 5

def test_there_and_back_passes_the_same_places(world):
    walk = T.there_and_back(world, 2 * 7 + 17, gen(), out=7)
    assert walk.poses[:, :8, :2].equal(walk.poses[:, 15:23, :2].flip(1))
    assert walk.poses[:, 15:23, 2].equal((walk.poses[:, :8, 2] + 8) % 16)

def test_no_room_for_a_lap():
    with pytest.raises(ValueError, match="no free lap"): T.there_and_back(BlockWorld(0, (8, 16, 8)), 27, gen())

def test_confined_and_expedition(world):
    confined, far = T.confined_walk(world, 300, gen()), T.expedition(world, 300, gen())
    home = confined.poses[:, :1, :2]
    assert ((confined.poses[..., :2] - home).abs() <= 4 * SUB).all()
    turns = ((confined.actions == TURN_LEFT) | (confined.actions == TURN_RIGHT)).float().mean()
    assert .65 < turns < .85 and (confined.actions == BACK).any()
    assert .6 < (far.actions == FORWARD).float().mean() < .75
    def extent(walk): return (walk.poses[..., :2].amax(1) - walk.poses[..., :2].amin(1)).float().mean()
    assert extent(far) > 2 * extent(confined) and (confined.revisit >= 0).sum() > 1.5 * (far.revisit >= 0).sum()

def test_first_seen_by_hand(world):
    walk = T.confined_walk(world, 12, gen())
    frames = render(world, walk.poses, STRIP)
    first, share = T.first_seen(frames), T.seen_before(frames)
    for w in (0, 5):
        known = {}
        for t in range(12):
            now = list(zip(frames.voxel[w, t].flatten().tolist(), frames.face[w, t].flatten().tolist()))
            for surface in now: known.setdefault(surface, t)
            expected = [-1 if v < 0 else known[v, f] for v, f in now]
            assert first[w, t].flatten().tolist() == expected
            hits = [e for e in expected if e >= 0]
            assert share[w, t].item() == pytest.approx(sum(e < t for e in hits) / len(hits))

def same(a, b): return all(torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride() for p, q in zip(a[1:], b[1:]) for x, y in zip(p, q))

def test_clips_from_disk_are_equal_to_the_bit(tmp_path):
    ask = dict(kind="expedition", seeds=range(3), frames=9, camera=STRIP, seed=2)
    made, stored, read = T.clips(**ask), T.clips(**ask, cache=tmp_path), T.clips(**ask, cache=tmp_path)
    assert same(made, stored) and same(made, read) and read[0].blocks.equal(made[0].blocks)
    assert len(list(tmp_path.iterdir())) == 1
    for change in (dict(seed=3), dict(frames=10), dict(seeds=[0, 1, 3]), dict(camera=Camera(16, 32)), dict(kind="turntable"), dict(style="snow")):
        T.clips(**ask | change, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7

def test_a_broken_file_is_made_again(tmp_path):
    ask = dict(kind="turntable", seeds=4, frames=5, camera=STRIP, cache=tmp_path)
    made = T.clips(**ask)
    (path,) = tmp_path.iterdir()
    for junk in (path.read_bytes()[:-1], b"", b"nonsense"):
        path.write_bytes(junk)
        assert same(made, T.clips(**ask))
    assert len(list(tmp_path.iterdir())) == 1

def fill(folder):
    torch.set_num_threads(1)
    for seed in range(1000): T.clips("turntable", range(4), 17, STRIP, seed=seed, cache=folder)

def test_a_kill_leaves_nothing_torn(tmp_path):
    "A process that writes clip after clip is killed; every file with a final name can be read."
    child = multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Process(target=fill, args=(tmp_path,))
    child.start()
    deadline = time.time() + 30
    while len(list(tmp_path.glob("*.safetensors"))) < 3 and time.time() < deadline: time.sleep(.02)
    os.kill(child.pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.join()
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) >= 3 and all(T.read(path) is not None for path in files)

def test_unknown_kind():
    with pytest.raises(ValueError, match="did you mean 'turntable'"): T.clips("turntabel", 0, 4, STRIP)

def test_walks_do_not_change():
    "Checkpoints are trained on these walks."
    world = BlockWorld(range(4))
    got = {}
    for kind in T.KINDS:
        walk = T.KINDS[kind](world, 40, gen(7))
        got[kind] = int((walk.poses.flatten() * torch.arange(1, walk.poses.numel() + 1)).sum()) + int((walk.actions.flatten() * torch.arange(1, walk.actions.numel() + 1)).sum())
    assert got == {"turntable": 188669359, "there and back": 247446416, "square loop": 188598966, "confined walk": 191205129, "expedition": 179945963}
    assert start(world, gen(7)).flatten().tolist()[:3] == T.turntable(world, 1, gen(7)).poses.flatten().tolist()[:3]
