"""The renderer against formulas, ray-by-ray traversal and fine marching."""
import math
import pytest
import torch
from llmwatch_course.memory_forcing.camera import Camera, axes, back_project, pixel_rays, project
from llmwatch_course.memory_forcing.render import Frames, paint, render, render_at
from llmwatch_course.memory_forcing.world import AIR, EYE, FIRST_LANDMARK, GRASS, PALETTE, STONE, TURN_RIGHT, BlockWorld, start, step, where

STRIP = Camera(8, 32)

@pytest.fixture(scope="module")
def walk():
    world, g = BlockWorld(range(4)), torch.Generator().manual_seed(0)
    poses = torch.stack([start(world, g) for _ in range(6)], 1)
    poses[..., 3] = torch.randint(-2, 3, (4, 6), generator=g)
    return world, poses

@pytest.fixture(scope="module")
def seen(walk): return render(*walk, Camera(24, 32))

def flat_world(n=1):
    blocks = torch.zeros(n, 64, 16, 64, dtype=torch.uint8); blocks[:, :, :4] = GRASS
    return BlockWorld.of(blocks)

def test_shapes_and_kinds(walk, seen):
    assert [tuple(o.shape) for o in seen] == [(4, 6, 3, 24, 32)] + [(4, 6, 24, 32)] * 4
    assert [o.dtype for o in seen] == [torch.float32, torch.float32, torch.uint8, torch.int8, torch.int32]
    assert seen.rgb.min() >= 0 and seen.rgb.max() <= 1
    sky = seen.depth.isinf()
    assert sky.any() and torch.equal(sky, seen.block == AIR) and torch.equal(sky, seen.voxel == -1) and torch.equal(sky, seen.face == -1)
    assert seen.depth[~sky].max() <= 32 and (seen.rgb.movedim(2, -1)[sky] == PALETTE[AIR]).all()

def test_voxel_names_the_block(walk, seen):
    world, _ = walk
    for w in range(4):
        hit = seen.voxel[w] >= 0
        assert torch.equal(world.blocks[w].flatten()[seen.voxel[w][hit].long()], seen.block[w][hit])

def test_points_lie_on_the_faces_they_name(walk, seen):
    world, poses = walk
    R, C = where(world, poses)
    for w, t in ((0, 0), (1, 3), (3, 5)):
        xyz, pixel = back_project(Camera(24, 32), R[w, t], C[w, t], seen.depth[w, t])
        voxel, face = seen.voxel[w, t].flatten()[pixel].long(), seen.face[w, t].flatten()[pixel].long()
        X, Y, Z = world.size
        corner = torch.stack([voxel // (Y * Z), voxel // Z % Y, voxel % Z], 1).float()
        inside = xyz - corner
        assert (inside > -1e-3).all() and (inside < 1 + 1e-3).all()
        across = inside.gather(1, face[:, None])[:, 0]
        assert torch.minimum(across.abs(), (across - 1).abs()).max() < 1e-3

def test_flat_world_has_a_formula():
    world, camera = flat_world(), Camera(32, 32)
    poses = torch.tensor([[[2053, 1297, yaw, pitch] for yaw in range(16) for pitch in (-1, 0, 1)]])
    R, _ = where(world, poses)
    down = torch.einsum("tij,hwj->thwi", R[0], pixel_rays(camera))[..., 1]
    z = torch.where(down < 0, -EYE / down, math.inf)
    got = render(world, poses, camera)
    near = z < 9  # further off the world may have ended
    torch.testing.assert_close(got.depth[0][near], z[near], atol=2e-5, rtol=1e-5)
    assert (got.face[0][near] == 1).all() and (got.block[0][down >= 0] == AIR).all()

def test_wall_straight_ahead_has_one_depth():
    blocks = torch.zeros(1, 64, 16, 64, dtype=torch.uint8); blocks[..., 40] = STONE
    got = render_at(BlockWorld.of(blocks), torch.tensor([0]), axes(torch.zeros(1), torch.zeros(1)), torch.tensor([[32., 8., 33.5]]), Camera(16, 16))
    assert (got.depth == 6.5).all() and (got.face == 2).all()  # z-depth: the same in the middle and in the corners

def test_another_algorithm(walk):
    "Marching in steps of 0.005; rays that graze a corner may differ."
    world, poses = walk
    got, (R, C) = render(world, poses[:, :2], STRIP), where(world, poses)
    agree = []
    for w in range(2):
        for t in range(2):
            ray = (pixel_rays(STRIP) @ R[w, t].T).reshape(-1, 3)
            block, depth, on = torch.zeros(256, dtype=torch.uint8), torch.full((256,), math.inf), torch.arange(256)
            for k in range(1, 6400):
                cell = (C[w, t] + k * .005 * ray[on]).floor().long()
                inside = ((cell >= 0) & (cell < torch.tensor(world.size))).all(1)
                on, cell = on[inside], cell[inside]
                here = world.blocks[w][cell.unbind(1)]
                block[on], depth[on[here > 0]] = here, k * .005
                on = on[here == 0]
                if not len(on): break
            same = got.block[w, t].flatten() == block
            both = same & (block > 0) & ((got.depth[w, t].flatten() - depth).abs() < .1)
            assert (got.depth[w, t].flatten() - depth)[both].abs().max() < .006
            agree.append(same.float().mean())
    assert torch.stack(agree).mean() > .995

def test_one_ray_at_a_time(walk):
    "Visits of cells in plain Python."
    world, poses = walk
    (R, C), got, blocks = where(world, poses), render(world, poses, STRIP), world.blocks.numpy()
    def first_hit(w, origin, ray):
        cell, t = [math.floor(o) for o in origin], 0.
        following = [((c + (d > 0)) - o) / d if d else math.inf for c, o, d in zip(cell, origin, ray)]
        while True:
            axis = min(range(3), key=following.__getitem__); t = following[axis]
            cell[axis] += 1 if ray[axis] > 0 else -1; following[axis] += 1 / abs(ray[axis])
            if t > 32 or not all(0 <= c < n for c, n in zip(cell, world.size)): return -1, -1
            if blocks[(w, *cell)]: return (cell[0] * 16 + cell[1]) * 64 + cell[2], axis
    same = []
    for w, t in ((0, 1), (1, 2), (2, 3), (3, 4)):
        rays = (pixel_rays(STRIP) @ R[w, t].T).reshape(-1, 3).tolist()
        pairs = zip(got.voxel[w, t].flatten().tolist(), got.face[w, t].flatten().tolist())
        same += [pair == first_hit(w, C[w, t].tolist(), ray) for pair, ray in zip(pairs, rays)]
    assert sum(same) / len(same) > .99

def test_a_turn_to_the_right_moves_things_left():
    world = flat_world()
    world.blocks[0, 32, 4:7, 26] = FIRST_LANDMARK
    got = render(world, torch.tensor([[[2080, 1280, yaw % 16, 0] for yaw in (-1, 0, 1)]]), Camera(32, 32))
    columns = [(got.block[0, t] == FIRST_LANDMARK).nonzero()[:, 1].float().mean().item() for t in range(3)]
    assert columns[0] > columns[1] > columns[2]
    R, C = where(world, torch.tensor([[[2080, 1280, 1, 0]]]))
    u, _, _ = project(Camera(32, 32), R[0, 0], C[0, 0], torch.tensor([[32.5, 5.5, 26.5]]))
    assert abs(u.item() - .5 - columns[2]) < 1

def test_coming_back_to_the_bit(walk):
    world, poses = walk
    pose = poses[:, 0]
    for _ in range(16): pose, _ = step(world, pose, torch.full((4,), TURN_RIGHT))
    assert all(torch.equal(a, b) for a, b in zip(render(world, poses[:, :1], STRIP), render(world, pose[:, None], STRIP)))

def test_company_does_not_matter(walk, seen):
    world, poses = walk
    alone = render(BlockWorld(2), poses[2:3, 4:5], Camera(24, 32))
    assert all(torch.equal(a[0, 0], b[2, 4]) for a, b in zip(alone, seen))
    R, C = where(world, poses)
    free = render_at(world, torch.tensor([3, 0, 3]), R[[3, 0, 3], [1, 2, 1]], C[[3, 0, 3], [1, 2, 1]], Camera(24, 32))
    for i, (w, t) in enumerate(((3, 1), (0, 2), (3, 1))): assert all(torch.equal(a[i], b[w, t]) for a, b in zip(free, seen))

def test_parts_do_not_matter(walk, monkeypatch):
    world, poses = walk
    whole = render(world, poses, STRIP)
    monkeypatch.setitem(__import__("llmwatch_course.memory_forcing.render", fromlist=["RAYS"]).RAYS, "cpu", 700)
    assert all(torch.equal(a, b) for a, b in zip(whole, render(world, poses, STRIP)))

def test_paint_follows_from_the_rest(walk, seen):
    world, _ = walk
    assert torch.equal(paint(world, *seen[1:]).movedim(-1, 2), seen.rgb)
    snow = BlockWorld(range(4), style="snow")
    assert not torch.equal(render(snow, walk[1], STRIP).rgb, render(*walk, STRIP).rgb)

def test_far(walk):
    near = render(*walk, STRIP, far=5.)
    all_ = render(*walk, STRIP)
    assert torch.equal(near.depth.isfinite(), all_.depth <= 5)

def test_cameras_must_stand_in_the_world(walk):
    world, _ = walk
    for C in ([[-1., 5, 5]], [[5., 16, 5]], [[5., math.nan, 5]]):
        with pytest.raises(ValueError, match="outside its world"): render_at(world, torch.tensor([0]), torch.eye(3)[None], torch.tensor(C), STRIP)
    high = render_at(world, torch.tensor([0]), axes(torch.zeros(1), torch.tensor([-1.2])), torch.tensor([[32., 15.9, 32.]]), STRIP)
    assert (high.block > AIR).all()  # from the top of the world, looking down

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_pictures_on_a_gpu(walk, seen):
    world = BlockWorld(range(4), device="cuda")
    got = Frames(*(o.cpu() for o in render(world, walk[1].cuda(), Camera(24, 32))))
    same = got.voxel == seen.voxel
    assert same.float().mean() > .999
    torch.testing.assert_close(got.depth[same], seen.depth[same], atol=1e-4, rtol=0)
