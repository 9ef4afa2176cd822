"""Visibility: the z-buffer against brute force, points against cast rays, the wall, noses on walls."""
import math
import pytest
import torch

from llmwatch_course.memory_forcing import visibility
from llmwatch_course.memory_forcing.camera import Camera, axes, back_project
from llmwatch_course.memory_forcing.point_memory import PointMemory
from llmwatch_course.memory_forcing.render import render, render_at
from llmwatch_course.memory_forcing.trajectories import confined_walk, expedition, turntable
from llmwatch_course.memory_forcing.visibility import nearest, pixels, splats, visible
from llmwatch_course.memory_forcing.world import STONE, BlockWorld, where

NORTH = axes(torch.tensor(0.), torch.tensor(0.))


def random_view(seed, n=300, camera=None):
    g = torch.Generator().manual_seed(seed)
    camera = camera or [Camera(8, 32), Camera(32, 32), Camera(6, 5, 70.), Camera(1, 1)][seed % 4]
    memory = PointMemory(voxel=[.25, .5][seed % 2])
    memory.add((torch.rand(n, 3, generator=g) - .5) * 20, 16 * torch.rand(n, generator=g) + .1, 0, camera.f)
    R = axes(*(torch.rand(2, generator=g) * torch.tensor([6.3, 1.]) - torch.tensor([0., .5])))
    return memory, camera, R, torch.randn(3, generator=g)


def look_at(d):
    "R for cameras that look along unit vectors d (n, 3)."
    up = torch.tensor([0., 1., 0.]).expand_as(d)
    right = torch.nn.functional.normalize(torch.linalg.cross(d, up), dim=-1)
    return torch.stack([right, torch.linalg.cross(d, right), d], -1)


def in_sight(world, C, xyz):
    "Whether a ray to each point meets nothing on its way: pictures of one pixel."
    d = xyz - C
    n = d.norm(dim=-1)
    seen = render_at(world, torch.zeros(len(d), dtype=torch.long), look_at(d / n[:, None]), C.expand(len(d), 3), Camera(1, 1), far=80.)
    return seen.depth.flatten() >= n - .02


def brute(memory, camera, R, C, far=32.):
    "Front square and its point at each pixel, every point against every pixel, in float64 where nothing is packed."
    p = (memory.xyz - C) @ R
    z = p[:, 2]
    u, v = camera.f * p[:, 0] / z + camera.W / 2, camera.f * p[:, 1] / z + camera.H / 2
    r = memory.radius * camera.f / z
    covers = torch.zeros(len(z), camera.H, camera.W, dtype=torch.bool)
    for y in range(camera.H):
        for x in range(camera.W):
            square = ((u - x - .5).abs() <= r) & ((v - y - .5).abs() <= r)
            cross = (u.floor() == x) & ((v.floor() == y) | ((v - y - .5).abs() <= r)) | (v.floor() == y) & ((u - x - .5).abs() <= r)
            covers[:, y, x] = square | cross
    depth = torch.where(covers & ((z > visibility.NEAR) & (z < far))[:, None, None], z[:, None, None], math.inf)
    front = depth.min(0)
    return torch.where(front.values.isinf(), -1, (depth == front.values).int().argmax(0))


@pytest.mark.parametrize("seed", range(12))
def test_zbuffer_equals_brute_force(seed):
    memory, camera, R, C = random_view(seed)
    got, want = pixels(memory, camera, R, C), brute(memory, camera, R, C)
    # the two compute u and v in another order: where they differ, an edge of a square lies on the centre of a pixel
    assert (got != want).float().mean() < .01 and got.shape == (camera.H, camera.W)


@pytest.mark.parametrize("seed", range(12))
def test_nearest_equals_a_loop(seed):
    "Exactly, given the same squares."
    memory, camera, R, C = random_view(seed, 200)
    s = splats(memory, camera, R, C)
    front, row = torch.full((camera.H, camera.W), math.inf), torch.full((camera.H, camera.W), -1)
    for i, (_, z, _, x, y, w, h) in enumerate(zip(*s)):
        part = (slice(int(y), int(y + h)), slice(int(x), int(x + w)))
        row[part] = torch.where(z < front[part], i, row[part])
        front[part] = torch.minimum(front[part], z)
    assert torch.equal(nearest(s, camera).view(camera.H, camera.W), row)
    assert (s.width > 0).all() and (s.left >= 0).all() and (s.left + s.width <= camera.W).all() and (s.top + s.height <= camera.H).all()


@pytest.mark.parametrize("seed", range(4))
def test_order_of_points_does_not_matter(seed):
    memory, camera, R, C = random_view(seed)
    order = torch.randperm(len(memory), generator=torch.Generator().manual_seed(seed))
    mixed = PointMemory(memory.voxel)
    mixed.key, mixed.xyz, mixed.src, mixed.radius = memory.key[order], memory.xyz[order], memory.src[order], memory.radius[order]
    assert torch.equal(order[visible(mixed, camera, R, C)].sort().values, visible(memory, camera, R, C).sort().values)


def test_nothing_to_see():
    memory, camera, R, C = random_view(1)
    for m, c in ((PointMemory(), C), (memory, C + 1000)):
        assert len(visible(m, camera, R, c)) == 0 and (pixels(m, camera, R, c) == -1).all()
    memory = PointMemory()
    memory.add(torch.tensor([[0., 0., -3.], [0., 0., 40.]]), torch.ones(2), 0, 16.)
    assert len(visible(memory, camera, NORTH, torch.zeros(3))) == 0
    assert len(visible(memory, camera, NORTH, torch.zeros(3), far=50.)) == 1


def walked(maker, seed, camera, frames=40, views=6):
    "A world, the memory of a walk through it, and some of its views."
    world = BlockWorld((1 << 20) + seed)
    walk = maker(world, frames, torch.Generator().manual_seed(seed))
    (R, C), depth = where(world, walk.poses), render(world, walk.poses, camera).depth
    memory = PointMemory()
    for t in range(frames):
        xyz, pixel = back_project(camera, R[0, t], C[0, t], depth[0, t])
        memory.add(xyz, depth[0, t].flatten()[pixel], t, camera.f)
    return world, memory, [(R[0, t], C[0, t]) for t in range(2, frames, frames // views)]


@pytest.mark.parametrize("camera", [Camera(32, 32), Camera(8, 32)])
def test_precision_and_recall_against_cast_rays(camera):
    "On views of two kinds of walk: each at least 0.85."
    both, found, true = 0, 0, 0
    for seed in range(3):
        for maker in (confined_walk, expedition):
            world, memory, views = walked(maker, seed, camera)
            for R, C in views:
                mine = torch.zeros(len(memory), dtype=torch.bool)
                mine[visible(memory, camera, R, C)] = True
                s = splats(memory, camera, R, C)
                inside = s.index[s.own >= 0]
                seen = torch.zeros_like(mine)
                seen[inside] = in_sight(world, C, memory.xyz[inside])
                both, found, true = both + int((mine & seen).sum()), found + int(mine.sum()), true + int(seen.sum())
    assert both / found >= .85 and both / true >= .85, (both / found, both / true)


def wall_world():
    "Flat ground, and across it a wall one block thick at z = 32."
    blocks = torch.zeros(1, 64, 16, 64, dtype=torch.uint8)
    blocks[:, :, :4] = STONE
    blocks[:, :, :14, 32] = STONE
    return BlockWorld.of(blocks)


def wall_memory(camera, world):
    memory = PointMemory()
    for frame, z in enumerate((24.5, 34.5)):
        C = torch.tensor([32.5, 5.62, z])
        depth = render_at(world, torch.zeros(1, dtype=torch.long), NORTH[None], C[None], camera).depth[0]
        xyz, pixel = back_project(camera, NORTH, C, depth)
        memory.add(xyz, depth.flatten()[pixel], frame, camera.f)
    return memory


@pytest.mark.parametrize("camera", [Camera(32, 32), Camera(8, 32), Camera(48, 48)])
def test_wall_hides_what_is_behind_it(camera):
    "Points vote for the frame before the wall if any is in the picture (there may be none: they are dots), pixels always."
    world = wall_world()
    memory = wall_memory(camera, world)
    C = torch.tensor([32.5, 5.62, 31.3])
    votes = torch.bincount(memory.src[visible(memory, camera, NORTH, C)], minlength=2).tolist()
    assert votes[1] == 0 and (votes[0] > 0 or camera.H == 8)
    assert (memory.src[pixels(memory, camera, NORTH, C)] == 0).all() and (pixels(memory, camera, NORTH, C) >= 0).all()
    memory.radius[:] = 0.
    assert torch.bincount(memory.src[visible(memory, camera, NORTH, C)], minlength=2)[1] > 0  # without footprints it leaks


def test_nose_on_the_wall():
    "From 1/64 block nothing but the wall is seen."
    camera, world = Camera(32, 32), wall_world()
    memory = wall_memory(camera, world)
    for gap in (1 / 64, .1, .5):
        C = torch.tensor([32.5, 5.62, 32 - gap])
        assert (memory.src[visible(memory, camera, NORTH, C)] == 0).all() and (pixels(memory, camera, NORTH, C) >= 0).all()


def test_a_frame_sees_itself():
    "Most points of a single picture are visible from where it was taken, and its surface pixels show something."
    world, camera = BlockWorld(1 << 20), Camera(32, 32)
    walk = turntable(world, 1, torch.Generator().manual_seed(0))
    (R, C), depth = where(world, walk.poses), render(world, walk.poses, camera).depth[0, 0]
    xyz, pixel = back_project(camera, R[0, 0], C[0, 0], depth)
    memory = PointMemory()
    memory.add(xyz, depth.flatten()[pixel], 0, camera.f)
    assert len(visible(memory, camera, R[0, 0], C[0, 0])) > .8 * len(memory)
    assert (pixels(memory, camera, R[0, 0], C[0, 0]).flatten()[pixel] >= 0).float().mean() > .95
