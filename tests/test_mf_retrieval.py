"""Retrieval: votes with known answers, exclusion before the choice, greedy cover, key-frames and their guard, the crop."""
import itertools, math, time
import pytest
import torch

from llmwatch_course.memory_forcing.camera import Camera, axes, back_project
from llmwatch_course.memory_forcing.point_memory import PointMemory
from llmwatch_course.memory_forcing.render import render, render_at
from llmwatch_course.memory_forcing.retrieval import KeyFrames, Observed, crop, greedy_cover, holes, novelty, observe, pixel_votes, point_votes, ranked
from llmwatch_course.memory_forcing.trajectories import confined_walk, expedition, turntable
from llmwatch_course.memory_forcing.visibility import visible
from llmwatch_course.memory_forcing.world import STONE, BlockWorld, where

NORTH, ORIGIN = axes(torch.tensor(0.), torch.tensor(0.)), torch.zeros(3)
CAMERA = Camera(32, 32)
VOTES = (point_votes, pixel_votes, greedy_cover)


def board(owners, columns=8, depth=10.):
    "A memory of a board before the camera: point i belongs to owners[i], all in view."
    memory = PointMemory(.5, observers=True)
    for i, owner in enumerate(owners):
        xyz = torch.tensor([[columns / 2 - i % columns - .5, i // columns - 3.5, depth]])
        assert memory.add(xyz, torch.full((1,), depth), owner, CAMERA.f) == 1
    return memory


def walked(maker, frames, rule=None, seed=0, observers=True, camera=CAMERA, world=None):
    world = world or BlockWorld((1 << 20) + seed)
    walk = maker(world, frames, torch.Generator().manual_seed(seed))
    (R, C), depth = where(world, walk.poses), render(world, walk.poses, camera).depth
    memory = PointMemory(observers=observers)
    log = [observe(memory, rule or KeyFrames(), camera, R[0, t], C[0, t], depth[0, t], t) for t in range(frames)]
    return memory, R[0], C[0], depth[0], log


def test_ranked():
    votes = torch.tensor([3, 0, 5, 3, 1])
    assert ranked(votes, 9) == ([2, 3, 0, 4], [5, 3, 3, 1]) and votes.tolist() == [3, 0, 5, 3, 1]
    assert ranked(votes, 2) == ([2, 3], [5, 3]) and ranked(votes, 2, [2, 3]) == ([0, 4], [3, 1]) and ranked(votes, 2, {2, 99, -1}) == ([3, 0], [3, 3])
    assert ranked(votes, 0) == ranked(torch.zeros(3, dtype=torch.long), 4) == ranked(votes[:0], 4) == ([], [])


@pytest.mark.parametrize("vote", VOTES)
def test_known_owners(vote):
    owners = [7] * 20 + [3] * 12 + [9] * 12 + [0] * 4
    memory = board(owners)
    assert len(visible(memory, CAMERA, NORTH, ORIGIN)) == 48
    ids, counts = vote(memory, CAMERA, NORTH, ORIGIN, 3)
    assert ids == [7, 9, 3] and (vote is pixel_votes or counts == [20, 12, 12])
    assert vote(memory, CAMERA, NORTH, ORIGIN, 9)[0] == [7, 9, 3, 0]
    assert vote(memory, CAMERA, NORTH, ORIGIN, 3, exclude=[7, 9])[0] == [3, 0]  # excluded before the choice, not after
    assert vote(memory, CAMERA, NORTH, ORIGIN, 0) == ([], [])


@pytest.mark.parametrize("vote", VOTES)
def test_nothing_there(vote):
    "No memory, a view of sky, everything excluded: no frames."
    memory = board([1] * 8)
    assert vote(PointMemory(observers=True), CAMERA, NORTH, ORIGIN, 4) == ([], [])
    assert vote(memory, CAMERA, NORTH, torch.tensor([0., 0., 20.]), 4) == ([], [])
    assert vote(memory, CAMERA, NORTH, ORIGIN, 4, exclude=[1]) == ([], [])


def test_order_of_points_does_not_matter():
    "Points of a frame that come in another order, each in a voxel of its own, make the same memory and the same answer."
    g, answers = torch.Generator().manual_seed(3), []
    xyz = (torch.cartesian_prod(*(torch.arange(-10, 11),) * 3) + .8 * torch.rand(21**3, 3, generator=g) - .4) * .25
    owner, depth = torch.randint(6, (len(xyz),), generator=g), 8 * torch.rand(len(xyz), generator=g)
    for order in (torch.arange(len(xyz)), torch.randperm(len(xyz), generator=g)):
        memory = PointMemory(observers=True)
        for frame in range(6):
            mine = order[owner[order] == frame]
            assert memory.add(xyz[mine], depth[mine], frame, CAMERA.f) == len(mine)
        answers.append([vote(memory, CAMERA, NORTH, torch.tensor([.1, .2, -5.]), 6) for vote in VOTES])
    assert answers[0] == answers[1] and len(answers[0][0][0]) == 6


def test_the_frame_behind_the_wall():
    "It stands nearer to the query than the frame before the wall, and gets no vote."
    blocks = torch.zeros(1, 64, 16, 64, dtype=torch.uint8)
    blocks[:, :, :4] = STONE
    blocks[:, :, :14, 32] = STONE
    world, memory = BlockWorld.of(blocks), PointMemory(observers=True)
    for frame, z in enumerate((24.5, 34.5)):
        C = torch.tensor([32.5, 5.62, z])
        depth = render_at(world, torch.zeros(1, dtype=torch.long), NORTH[None], C[None], CAMERA).depth[0]
        observe(memory, KeyFrames("every"), CAMERA, NORTH, C, depth, frame)
    for vote in VOTES: assert vote(memory, CAMERA, NORTH, torch.tensor([32.5, 5.62, 31.3]), 4)[0] == [0]


def brute_cover(memory, seen, k):
    "Greedy with Python sets."
    views, left = {}, set(seen.tolist())
    for point, frame in zip(memory.seen.tolist(), memory.seen_by.tolist()): views.setdefault(frame, set()).add(point)
    ids, counts = [], []
    for _ in range(k):
        gain, best = max((len(views[frame] & left), frame) for frame in views)
        if not gain: break
        ids.append(best); counts.append(gain); left -= views[best]
    return ids, counts


@pytest.mark.parametrize("maker", [confined_walk, expedition])
def test_greedy_cover(maker):
    "Equal to sets; never covers less than point votes; nearly the best four of all."
    memory, R, C, _, _ = walked(maker, 60, KeyFrames("every"), seed=2)
    for t in range(1, 60, 6):
        seen = visible(memory, CAMERA, R[t], C[t])
        got = greedy_cover(memory, CAMERA, R[t], C[t], 4)
        assert got == brute_cover(memory, seen, 4)
        views = {f: set(memory.seen[memory.seen_by == f].tolist()) & set(seen.tolist()) for f in range(60)}
        def covered(ids, views=views): return len(set().union(*(views[i] for i in ids)))
        assert covered(got[0]) == sum(got[1]) >= covered(point_votes(memory, CAMERA, R[t], C[t], 4)[0])
        best = max(covered(pair) for pair in itertools.combinations(sorted(views, key=lambda f: -len(views[f]))[:25], 2))
        assert covered(greedy_cover(memory, CAMERA, R[t], C[t], 2)[0]) >= (1 - 1 / math.e) * best


def test_greedy_needs_observers():
    with pytest.raises(ValueError, match="observers=True"): greedy_cover(PointMemory(), CAMERA, NORTH, ORIGIN, 4)


def test_novelty_and_holes():
    memory, (R, C, depth) = PointMemory(), [a[5] for a in walked(confined_walk, 6)[1:4]]
    xyz, pixel = back_project(CAMERA, R, C, depth)
    assert novelty(memory, xyz) == holes(memory, CAMERA, R, C, pixel) == 1.
    memory.add(xyz, depth.flatten()[pixel], 0, CAMERA.f)
    assert novelty(memory, xyz) == 0. and holes(memory, CAMERA, R, C, pixel) < .1
    assert novelty(memory, torch.cat([xyz, xyz + torch.tensor([0., 9., 0.])])) == .5
    assert novelty(memory, xyz[:0]) == holes(memory, CAMERA, R, C, pixel[:0]) == 0.


def test_keyframes():
    with pytest.raises(ValueError, match="pixel"): KeyFrames("pixel")
    for rule in (KeyFrames(), KeyFrames("holes")):
        log = walked(turntable, 40, rule)[-1]
        assert log[0] == Observed([], [], True, log[0].added) and log[0].added > 100
        assert not any(o.keyframe for o in log[16:]) and all(o.ids for o in log[16:])
        assert all((o.added > 0) == o.keyframe and (o.added >= rule.least or not o.keyframe) for o in log)


def test_guard_against_starvation():
    "A place whose points belong to fewer than τ frames: by the paper's rule every frame is a key-frame for ever, with the guard none is."
    def keyframes(least): return sum(o.keyframe for o in walked(turntable, 64, KeyFrames(least=least, history=8))[-1][32:])
    assert keyframes(0) == 32 and keyframes(8) == 0


@pytest.mark.parametrize("observers", [False, True])
def test_crop_loses_nothing_in_view(observers):
    memory, R, C, _, _ = walked(expedition, 100, observers=observers, seed=3, world=BlockWorld(5, size=(256, 16, 128)))
    reach = 32 * math.hypot(1, CAMERA.W / 2 / CAMERA.f)
    less = 0
    for t in range(0, 100, 20):
        part = crop(memory, C[t], reach)
        less += len(part) < len(memory)
        assert (part.key.diff() > 0).all() and torch.equal(part.key, memory.key[memory.find(part.key)[0]])
        near = ((memory.xyz - C[t])[:, ::2].abs() <= reach).all(1)
        assert memory.find(part.key)[1].all() and part.find(memory.key[near])[1].all()
        for vote in VOTES[:3 if observers else 2]: assert vote(part, CAMERA, R[t], C[t], 4) == vote(memory, CAMERA, R[t], C[t], 4)
    assert len(crop(memory, C[0] + 5000, 10.)) == 0 and len(crop(PointMemory(observers=observers), C[0], 10.)) == 0


def test_a_query_takes_little_time():
    "A generous bound; the benchmark has the number."
    memory, R, C, _, _ = walked(confined_walk, 100, observers=False)
    times = []
    for t in range(100):
        start = time.process_time()
        point_votes(memory, CAMERA, R[t], C[t], 4)
        times.append(time.process_time() - start)
    assert sorted(times)[len(times) // 4] < .01
