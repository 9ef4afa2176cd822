"""The point memory: keys, owners by replay, footprints, bounded growth, chunks that are slices."""
import math
import pytest
import torch

from llmwatch_course.memory_forcing.camera import Camera, back_project
from llmwatch_course.memory_forcing.point_memory import CHUNK, COLUMN, HALF, PointMemory, cells, chunk_of, footprint, voxel_keys
from llmwatch_course.memory_forcing.render import render
from llmwatch_course.memory_forcing.trajectories import confined_walk, square_loop, turntable
from llmwatch_course.memory_forcing.world import AIR, BlockWorld, where

CAMERA = Camera(16, 16)


def cloud(n, seed=0, size=9.):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 3, generator=g) - .5) * size, 1 + 30 * torch.rand(n, generator=g)


def surfaces(maker, frames, seed=0, seeds=1 << 20, **options):
    "World, and for each frame of a walk its points and depths."
    world = BlockWorld(seeds)
    walk = maker(world, frames, torch.Generator().manual_seed(seed), **options)
    (R, C), depth = where(world, walk.poses), render(world, walk.poses, CAMERA).depth
    found = [back_project(CAMERA, R[0, t], C[0, t], depth[0, t]) for t in range(frames)]
    return world, [(xyz, depth[0, t].flatten()[pixel]) for t, (xyz, pixel) in enumerate(found)]


def test_keys_name_voxels():
    "One key a voxel, negative coordinates included; every key is different and not negative."
    cell = torch.cartesian_prod(*(torch.tensor([-HALF, -65, -64, -2, -1, 0, 1, 63, 64, HALF - 2], dtype=torch.float64),) * 3)
    for voxel in (.25, .5, 2.):
        key = voxel_keys(cell * voxel, voxel)
        assert len(key.unique()) == len(key) and (key >= 0).all()
        assert torch.equal(key, voxel_keys((cell + .49) * voxel, voxel)) and torch.equal(key, voxel_keys((cell - .49) * voxel, voxel))
        assert (key != voxel_keys((cell + .51) * voxel, voxel)).all()


def test_chunks_are_slices():
    "The order of keys is: chunk seen from above first; the points of one chunk are neighbours in memory."
    xyz, _ = cloud(5000, size=200)
    key = voxel_keys(xyz, .25).sort().values
    chunk = key >> COLUMN
    assert (chunk.diff() >= 0).all() and len(chunk.unique()) == len(torch.floor(xyz[:, ::2] / .25 + .5).div(1 << CHUNK, rounding_mode="floor").unique(dim=0))
    assert (chunk_of(cells(xyz, .25)[:, ::2]).sort().values == chunk).all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 3e5, -3e5])
def test_what_no_voxel_holds(bad):
    memory, (xyz, depth) = PointMemory(), cloud(4)
    xyz[2, 1] = bad
    with pytest.raises(ValueError, match="sky"): memory.add(xyz, depth, 0, 8.)
    assert len(memory) == 0 and memory.nbytes() == 0


def test_empty_and_single():
    memory = PointMemory(observers=True)
    assert memory.add(torch.zeros(0, 3), torch.zeros(0), 0, 8.) == 0 and len(memory) == 0
    assert memory.add(torch.zeros(1, 3), torch.ones(1), 5, 8.) == 1 and memory.src.tolist() == [5]
    assert memory.add(torch.full((1, 3), .1), torch.ones(1), 6, 8.) == 0 and memory.src.tolist() == [5] and memory.seen_by.tolist() == [5, 6]


@pytest.mark.parametrize("seed", range(4))
def test_against_a_dict(seed):
    "Owner, point and footprint of each voxel as a dict of Python keeps them; arrays stay sorted."
    memory, truth = PointMemory(observers=True), {}
    for frame in range(12):
        xyz, depth = cloud(400, 100 * seed + frame, size=[6., 3., 20.][frame % 3])
        before = len(truth)
        for p, z in zip(xyz, depth):
            where_ = tuple(math.floor(c / .25 + .5) for c in p.tolist())
            point, owner, radius, seen = truth.get(where_, (p, frame, math.inf, set()))
            truth[where_] = point, owner, min(radius, max(.87 * .25, .75 * float(z) / 8)), seen | {frame}
        assert memory.add(xyz, depth, frame, 8.) == len(truth) - before and memory.add(xyz, depth, frame + 100, 8.) == 0
        memory.seen, memory.seen_by = (a[memory.seen_by < 100] for a in (memory.seen, memory.seen_by))
    assert len(memory) == len(truth) and (memory.key.diff() > 0).all()
    keys = [int(voxel_keys(torch.tensor([cell]) * .25, .25)) for cell in truth]
    assert sorted(keys) == memory.key.tolist()
    for key, (point, owner, radius, seen) in zip(keys, truth.values()):
        i = memory.key.tolist().index(key)
        assert torch.equal(memory.xyz[i], point) and int(memory.src[i]) == owner and math.isclose(float(memory.radius[i]), radius, rel_tol=1e-6)
        assert set(memory.seen_by[memory.seen == i].tolist()) == seen


def test_order_within_a_frame_does_not_matter():
    xyz, depth = cloud(900)
    order = torch.randperm(900, generator=torch.Generator().manual_seed(1))
    a, b = PointMemory(), PointMemory()
    a.add(xyz, depth, 3, 8.); b.add(xyz[order], depth[order], 3, 8.)
    assert torch.equal(a.key, b.key) and torch.equal(a.src, b.src) and torch.equal(a.radius, b.radius)


def test_owner_is_the_first_frame_that_saw_it():
    "By replay over a real walk."
    _, frames = surfaces(confined_walk, 24)
    memory, first = PointMemory(), {}
    for t, (xyz, depth) in enumerate(frames):
        memory.add(xyz, depth, t, CAMERA.f)
        for key in voxel_keys(xyz, .25).tolist(): first.setdefault(key, t)
    assert dict(zip(memory.key.tolist(), memory.src.tolist())) == first


def test_footprint():
    assert footprint(torch.tensor([.1, 16., 32.]), 16., .25).tolist() == pytest.approx([.2175, .75, 1.5])


@pytest.mark.parametrize("maker,options,lap", [(turntable, {}, 16), (square_loop, {"edge": 3}, 28)])
def test_a_second_lap_adds_nothing(maker, options, lap):
    world, frames = surfaces(maker, 3 * lap + 1, **options)
    memory, size = PointMemory(), []
    for t, (xyz, depth) in enumerate(frames):
        memory.add(xyz, depth, t, CAMERA.f)
        size.append(len(memory))
    assert size[lap] == size[-1] and int(memory.src.max()) < lap
    assert size[-1] <= exposed_voxels(world, .25)


def exposed_voxels(world, voxel):
    "How many voxels touch a face between a block and air, counted from the grid."
    solid = torch.nn.functional.pad((world.blocks[0] != AIR), (1,) * 6)
    n, found = round(1 / voxel), []
    side = torch.arange(n + 1)
    for axis in range(3):
        face = solid ^ solid.roll(-1, axis)
        corner = face.nonzero() - 1
        corner[:, axis] += 1
        grid = torch.cartesian_prod(*(torch.zeros(1, dtype=torch.long) if a == axis else side for a in range(3)))
        found.append((corner[:, None] * n + grid).flatten(0, 1))
    return len(torch.cat(found).unique(dim=0))


def test_bytes_are_all_bytes():
    memory, observed = PointMemory(), PointMemory(observers=True)
    for m in (memory, observed):
        for frame in range(3): m.add(*cloud(500, frame), frame, 8.)
    assert memory.nbytes() == 28 * len(memory) and observed.nbytes() == 28 * len(observed) + 8 * len(observed.seen)
