"Rival retrieval rules against plain Python, what each may choose, exact coverage, colours of points, and the warp."
import math
import pytest
import torch
from llmwatch_course.memory_forcing.camera import Camera, axes, back_project, project
from llmwatch_course.memory_forcing.point_memory import PointMemory
from llmwatch_course.memory_forcing.render import Frames, render, render_at
from llmwatch_course.memory_forcing.retrieval import KeyFrames, observe
from llmwatch_course.memory_forcing.rivals import (Poses, Scan, ViewIndex, ball, closest, coverage, faces, in_view, last_k, nearest_pose,
                                                   point_colours, random_k, remember, retrieval_times, scan_published, warp)
from llmwatch_course.memory_forcing.trajectories import confined_walk, turntable
from llmwatch_course.memory_forcing.visibility import visible
from llmwatch_course.memory_forcing.world import BlockWorld, where

CAMERA = Camera(16, 24)
RULES = (scan_published, Scan(500), ViewIndex((8, 4, 8), 1.), nearest_pose, last_k, random_k)


def poses(n: int, seed: int = 0, dtype=torch.float64) -> Poses:
    dice = torch.Generator().manual_seed(seed)
    R = axes(torch.randint(16, (n,), generator=dice) * math.pi / 8, torch.rand(n, generator=dice) - .5)
    return Poses(R.to(dtype), (torch.rand(n, 3, generator=dice) * torch.tensor([8., 3., 8.])).to(dtype))


def walked(walker, frames: int, seed: int = 0):
    world = BlockWorld(seed, size=(32, 16, 32))
    walk = walker(world, frames, torch.Generator().manual_seed(seed))
    return (Frames(*(o[0] for o in render(world, walk.poses, CAMERA))), *(o[0] for o in where(world, walk.poses)))


def by_hand(bank, R, C, k, points, exclude=()):
    "The scan in plain Python, one point and one pose at a time."
    def view(r, c):
        u, v, z = (o.tolist() for o in project(CAMERA, r, c, points))
        return {i for i in range(len(points)) if z[i] > 0 and 0 < u[i] < CAMERA.W and 0 < v[i] < CAMERA.H}
    left, stored, n, ids, gains = view(R, C), [view(r, c) for r, c in zip(*bank)], len(bank.C), [], []
    for _ in range(k):
        score = {i: len(left & stored[i]) / max(len(left), 1) - .2 * (n - i) / n for i in range(n) if i not in ids and i not in exclude}
        if not score: break
        ids.append(max(score, key=score.get)); gains.append(len(left & stored[ids[-1]])); left = left - stored[ids[-1]]
    return ids, gains


@pytest.mark.parametrize("seed", range(3))
def test_all_scans_choose_as_plain_python_does(seed):
    bank, asked = poses(30, seed), poses(3, seed + 100)
    scan, index = Scan(400, seed=seed), ViewIndex((8, 4, 8), 1.)
    index.points = index.points.double()
    for R, C in zip(*asked):
        around = C + scan.ball.double()
        for exclude in ((), (29, 3, 7)):
            assert by_hand(bank, R, C, 5, around, exclude) == scan_published(bank, CAMERA, R, C, 5, exclude, points=around) == scan(bank, CAMERA, R, C, 5, exclude)
            assert by_hand(bank, R, C, 5, index.points, exclude) == index(bank, CAMERA, R, C, 5, exclude)


def test_index_grows_with_the_list_and_its_radius_limits_the_points():
    bank, (R, C) = poses(200, dtype=torch.float32), (o[0] for o in poses(1, 1, torch.float32))
    grown, fresh, near = ViewIndex((8, 4, 8), 1.), ViewIndex((8, 4, 8), 1.), ViewIndex((8, 4, 8), 1., radius=2.)
    for n in (1, 2, 63, 64, 65, 130, 200): found = grown(Poses(*(o[:n] for o in bank)), CAMERA, R, C, 4)
    assert found == fresh(bank, CAMERA, R, C, 4) and grown.nbytes() == fresh.nbytes() == 200 * len(fresh.points) // 8
    inside = in_view(near.points, CAMERA, R[None], C[None])[0] & ((near.points - C).norm(dim=-1) <= 2)
    assert sum(near(bank, CAMERA, R, C, 200)[1]) <= int(inside.sum()) < sum(found[1])


def test_sample_points_fill_the_ball_evenly():
    r = ball(40_000, 30., torch.Generator().manual_seed(0)).norm(dim=-1)
    assert r.max() <= 30 + 1e-4
    torch.testing.assert_close((r < 15).float().mean(), torch.tensor(1 / 8), atol=.01, rtol=0)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: getattr(rule, "__name__", type(rule).__name__))
def test_what_a_rule_may_choose(rule):
    bank, (R, C) = poses(12, dtype=torch.float32), (o[0] for o in poses(1, 1, torch.float32))
    ids, scores = rule(bank, CAMERA, R, C, 4, range(8, 12))
    assert len(ids) == len(set(ids)) == len(scores) == 4 and max(ids) < 8
    assert len(rule(bank, CAMERA, R, C, 99, (0,))[0]) == 11
    assert rule(bank, CAMERA, R, C, 4, range(12)) == ([], [])
    if not isinstance(rule, ViewIndex): assert rule(Poses(*(o[:0] for o in bank)), CAMERA, R, C, 4) == ([], [])


def test_nearest_pose_and_last():
    bank = poses(20, dtype=torch.float32)
    bank = Poses(torch.cat([bank.R, bank.R[5:6]]), torch.cat([bank.C, bank.C[5:6]]))
    ids, far = nearest_pose(bank, CAMERA, bank.R[5], bank.C[5], 3)
    assert ids[:2] == [20, 5] and max(far[:2]) < 1e-2 < far[2]  # the newest of equals first
    turned = Poses(axes(torch.tensor([0., math.pi / 8]), torch.zeros(2)), torch.zeros(2, 3))
    assert nearest_pose(turned, CAMERA, turned.R[0], turned.C[0], 2)[1][1] == pytest.approx(.5, abs=1e-3)
    assert last_k(bank, CAMERA, bank.R[0], bank.C[0], 3, (20, 18)) == ([19, 17, 16], [2, 4, 5])


def test_coverage_is_exact():
    seen, R, _ = walked(turntable, 18)
    shown = faces(seen, CAMERA, R)
    assert ((shown < 0) == seen.depth.isinf()).all() and coverage(shown, 17, [1]) == 1 and coverage(shown, 3, []) == 0
    one, other = set(shown[2].unique().tolist()), set(shown[5].unique().tolist())
    expected = [float(i in other) for i in shown[2].flatten().tolist() if i >= 0]
    assert coverage(shown, 2, [5]) == pytest.approx(sum(expected) / len(expected)) and one != other
    assert coverage(torch.full_like(shown, -1), 0, [1]) == 1


def test_opposite_sides_of_a_block_are_two_faces():
    blocks = torch.zeros(1, 16, 8, 16, dtype=torch.uint8)
    blocks[0, 8, :, 8] = 3
    R = axes(torch.tensor([0., math.pi]), torch.zeros(2))
    C = torch.tensor([[8.5, 4., 5.], [8.5, 4., 12.]])
    shown = faces(render_at(BlockWorld.of(blocks), torch.zeros(2, dtype=torch.long), R, C, CAMERA), CAMERA, R)
    assert (shown >= 0).flatten(1).any(1).all() and coverage(shown, 0, [1]) == 0


def test_remember_keeps_the_frames_that_observe_keeps():
    seen, R, C = walked(confined_walk, 40)
    one, other = PointMemory(), PointMemory()
    kept = remember(one, seen, CAMERA, R, C, range(20)) + remember(one, seen, CAMERA, R, C, range(20, 40))
    assert kept == [t for t in range(40) if observe(other, KeyFrames(), CAMERA, R[t], C[t], seen.depth[t], t).keyframe]
    assert torch.equal(one.key, other.key) and torch.equal(one.src, other.src)


def test_a_point_has_the_colour_of_the_pixel_that_made_it():
    seen, R, C = walked(confined_walk, 6)
    memory, truth = PointMemory(), {}
    for t in range(6):
        xyz, pixel = back_project(CAMERA, R[t], C[t], seen.depth[t])
        memory.add(xyz, seen.depth[t].flatten()[pixel], t, CAMERA.f)
        for p, colour in zip(xyz.tolist(), seen.rgb[t].flatten(1)[:, pixel].T.tolist()): truth.setdefault((t, *p), colour)
    colours = point_colours(memory, seen.rgb, CAMERA, R, C)
    wanted = torch.tensor([truth[(int(s), *p)] for s, p in zip(memory.src, memory.xyz.tolist())])
    assert torch.equal(colours, wanted)


def test_warp():
    seen, R, C = walked(turntable, 17)
    memory, fill = PointMemory(.05), torch.full((3, 16, 24), .5)
    empty = point_colours(memory, seen.rgb, CAMERA, R, C)
    assert torch.equal(warp(memory, empty, CAMERA, R[0], C[0], fill), fill)
    remember(memory, seen, CAMERA, R, C, [0], KeyFrames("every"))
    colours, shown = point_colours(memory, seen.rgb, CAMERA, R, C), closest(memory, CAMERA, R[16], C[16])
    assert set(shown.unique().tolist()) <= {-1, *visible(memory, CAMERA, R[16], C[16]).tolist()}
    picture, ground = warp(memory, colours, CAMERA, R[16], C[16], fill), shown >= 0
    assert torch.equal(picture[:, ~ground], fill[:, ~ground])
    same = ((picture - seen.rgb[16]).abs().amax(0) < 1e-6) & seen.depth[16].isfinite()
    assert same.sum() > .95 * seen.depth[16].isfinite().sum()  # small voxels: nearly every pixel finds its own point


def test_retrieval_times_has_what_the_claims_need():
    threads = torch.get_num_threads()
    found = retrieval_times(60, every=30, views=3)
    half, whole = found["rows"]
    assert torch.get_num_threads() == threads and (half["frames"], whole["frames"]) == (30, 60) and set(found["ratios"]) == {"scan", "view index", "scan as published"}
    for name in found["ratios"]: assert found["ratios"][name] == whole[f"{name} ms"] / whole["point memory ms"]
    assert whole["scan bytes"] == 2 * half["scan bytes"] and half["points"] <= whole["points"] and half["key-frames"] <= whole["key-frames"]
    assert whole["point memory bytes"] > whole["key-frames"] * 3 * 32 * 32
