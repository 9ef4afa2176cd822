"""What the library does is what the exercises of chapter 7 ask for."""
import math, sys
import numpy as np
import pytest
import torch
from torch import nn
from llmwatch_course.memory_forcing import camera, chained, checks, reconstruct, tables
from llmwatch_course.memory_forcing.mistakes import RIGHT
from llmwatch_course.memory_forcing.point_memory import HALF, PointMemory, cells, voxel_keys
from llmwatch_course.memory_forcing.retrieval import greedy_cover, point_votes


def test_axes(): checks.check_axes(camera.axes)


def test_project(): checks.check_project(camera.project)


def test_back_project():
    def answer(eye, R, C, depth):
        xyz, pixel = camera.back_project(camera.Camera(eye.H, eye.W, 2*math.degrees(math.atan(eye.W/2/eye.f))), R.float(), C.float(), depth.float())
        return xyz.double(), pixel
    checks.check_back_project(answer)


def test_first_owners():
    "The library's grid is shifted by half a voxel, and its frames come one after the other."
    def answer(xyz, frame, size):
        memory = PointMemory(size)
        for t in frame.unique().tolist(): memory.add(xyz[frame == t] - size/2, torch.ones(int((frame == t).sum())), t, 16.)
        return cells(memory.xyz, size) - HALF, memory.src.long()
    for told, (xyz, frame, size) in checks._POINTS.items():
        voxel, owner = answer(xyz, frame, size)
        assert dict(zip(map(tuple, voxel.tolist()), owner.tolist(), strict=True)) == checks._first(told), told


def remembered(xyz, radius, owner):
    "A memory that holds these points as they are."
    memory = PointMemory(1/64)
    order = voxel_keys(xyz, memory.voxel).argsort()
    memory.key, memory.xyz, memory.radius, memory.src = voxel_keys(xyz, memory.voxel)[order], xyz[order].float(), radius[order].float(), owner[order].int()
    return memory


@pytest.mark.parametrize("told", [o for o in checks._views() if o.startswith(("a wall", "the same wall", "from behind", "a memory"))])
def test_votes_of_what_is_seen(told):
    "The library allows more depth behind a surface, as it may be slanted; near a wall who is seen is the same."
    xyz, radius, owner, eye, R, C, k, *exclude = checks._views()[told]
    memory = remembered(xyz, radius, owner)
    ids, counts = point_votes(memory, camera.Camera(eye.H, eye.W), R.float(), C.float(), k, *exclude)
    want = checks._answers()[told]
    assert ids == want[0]
    assert all(abs(a - b) <= max(1, .1*b) for a, b in zip(counts, want[1], strict=True))


def test_scale():
    def answer(old, new, sure_old, sure_new): return reconstruct.scale_align(reconstruct.Estimate(old, sure_old), reconstruct.Estimate(new, sure_new))
    checks.check_scale(answer)


def test_chained(monkeypatch):
    def answer(x, windows, W, loss, denoise):
        monkeypatch.setattr(chained, "df_loss", lambda model, window, start, generator, mask: loss(window, mask[0], start))
        monkeypatch.setattr(chained, "sample_next", lambda model, window, start, generator, few: denoise(window.clone(), start).detach())
        return chained.chained_loss(nn.Identity(), x, [*range(windows)], torch.Generator())
    checks.check_chained(answer)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_cover(seed):
    "The points of the check's view, on a plate before the camera, with the frames that saw them there."
    point, frame = checks._plain(seed)
    place = torch.stack([(point % 40 - 19.5)/10.5, (point // 40 - 19.5)/10.5, torch.full(point.shape, 2.)], -1)
    memory = PointMemory(1/16, observers=True)
    for t in frame.unique().tolist(): memory.add(place[frame == t], torch.ones(int((frame == t).sum())), t, 1e3)
    ids, counts = greedy_cover(memory, camera.Camera(64, 64), torch.eye(3), torch.zeros(3), 4)
    want = RIGHT["check_cover"][1](point, frame, 4)
    assert ids == want and sum(counts) == checks._shown(point, frame, want)
    assert len(memory) == len(point.unique()) > 0


def test_table():
    own, table = checks._by_the_clock(*checks._RUNS["Table 2"]), tables.mf_table()
    np.testing.assert_allclose([own["speedup"], own["saved"]], [table["total_time"], table["frames_saved"]], rtol=1e-4)
    np.testing.assert_allclose([own["scan"], own["points"]], list(table["frames_per_second"].values()), rtol=1e-6)
    assert abs(own["scan"] - 2.57) < .005 and abs(own["points"] - 28.29) < .005 and abs(own["speedup"] - 11) < .05


def test_a_wall_hides_what_footprints_close():
    "Without footprints the wall leaks, without a z-buffer everything does."
    told = "a wall 0.7 blocks ahead, other frames behind it"
    right, through, dots = (checks._told(f, checks._views()[told])[0] for f in (RIGHT["check_retrieve"][0], *(f for f, _ in checks.WRONG["check_retrieve"][:2])))
    assert right == [0] and set(through) != {0} and set(dots) != {0}


def test_loops_are_seen_and_tracing_ends():
    before = sys.gettrace()
    assert checks._loops(lambda n: [i for i in range(n)], 10**6) and not checks._loops(torch.arange, 10**6)
    assert sys.gettrace() is before


@pytest.mark.parametrize("view", range(20))
def test_greedy_never_shows_less_than_first_owners(view):
    point, frame, k, *exclude = checks._SIGHTS[next(o for o in checks._SIGHTS if o.startswith(f"view {view},"))]
    votes = next(f for f, sentence in checks.WRONG["check_cover"] if "only the first frame" in sentence)
    a, b = (checks._shown(point, frame, f(point, frame, k, *exclude)) for f in (RIGHT["check_cover"][0], votes))
    assert a >= b
