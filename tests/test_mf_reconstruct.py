"""The closed form finds scales to a per cent, gates keep bad pixels out, and a stream of windows becomes one cloud."""
import math
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llmwatch_course.memory_forcing.camera import Camera, axes, back_project
from llmwatch_course.memory_forcing.point_memory import PointMemory
from llmwatch_course.memory_forcing.reconstruct import Estimate, Reconstruction, View, agreement, close, metric_scale, scale_align, spoiled, trusted
from llmwatch_course.memory_forcing.trajectories import clips
from llmwatch_course.memory_forcing.world import where

CAMERA = Camera(16, 32)


@pytest.fixture(scope="module")
def loop():
    "Every second frame of a walk around a square: depth, R, C."
    world, walk, frames = clips("square loop", 7, 61, CAMERA, seed=3)
    R, C = where(world, walk.poses)
    return frames.depth[0, ::2], R[0, ::2], C[0, ::2]


def dice(seed=0): return torch.Generator().manual_seed(seed)
def sure(depth): return Estimate(depth, torch.where(depth.isfinite(), torch.ones(()), 0.))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 5.), st.integers(0, 10**6))
def test_the_factor_is_found_to_a_per_cent(c, seed):
    "Oracle: depth times c, 2 % noise, 20 % far-off pixels of low confidence."
    g = dice(seed)
    true = 2 + 30 * torch.rand(4, 16, 32, generator=g)
    assert abs(scale_align(sure(true), spoiled(true, g, c)) * c - 1) < 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_it_is_the_least_squares_solution_of_the_pixels_that_pass(seed):
    "Against a loop that applies the three gates one pixel at a time, and torch's solver."
    g = dice(seed)
    def draw(): return Estimate(torch.where(torch.rand(2, 4, 6, generator=g) < 0.1, torch.inf, 10 * torch.rand(2, 4, 6, generator=g)), torch.rand(2, 4, 6, generator=g))
    old, new = draw(), draw()
    pixels = [p for p in zip(*(x.flatten().tolist() for x in (*old, *new))) if min(p[0], p[2]) > 1e-6 and max(p[0], p[2]) < math.inf and min(p[1], p[3]) > 0.1]
    low = [torch.tensor([p[k] for p in pixels]).quantile(0.4).item() for k in (1, 3)]
    best = torch.tensor([p for p in pixels if p[1] >= low[0] and p[3] >= low[1]], dtype=torch.float64)
    solved = torch.linalg.lstsq(best[:, 2:3], best[:, 0:1]).solution.item()
    assert math.isclose(scale_align(old, new), solved, rel_tol=1e-6)


def test_each_gate_keeps_its_pixels_out():
    "A spoiled pixel changes the answer only when it is let in."
    old = sure(torch.full((1, 10, 10), 4.))
    for depth, confidence in ((1e-7, 1.), (400., 0.1), (400., 0.5), (math.inf, 1.)):
        new = sure(torch.full((1, 10, 10), 2.))
        new.depth[0, :3], new.confidence[0, :3] = depth, confidence
        assert scale_align(old, new) == 2.
    new.depth[0, :3], new.confidence[0, :3] = 400., 1.
    assert scale_align(old, new) < 0.1


def test_an_empty_overlap_gets_a_sentence():
    some = torch.ones(1, 4, 4)
    with pytest.raises(ValueError, match="no pixel of the overlap is left"): scale_align(sure(some), Estimate(some, 0 * some))
    with pytest.raises(ValueError, match="no pixel of the overlap is left"): scale_align(sure(some / 0), sure(some / 0))
    left, right = torch.linspace(0.2, 1, 16).view(1, 4, 4), torch.linspace(1, 0.2, 16).view(1, 4, 4)
    with pytest.raises(ValueError, match="most confident of both"): scale_align(Estimate(some, left), Estimate(some, right), share=0.3)
    with pytest.raises(ValueError, match=r"are \(1, 4, 4\) before and \(2, 4, 4\) now"): scale_align(sure(some), sure(torch.ones(2, 4, 4)))


def test_the_stand_in_is_the_truth_times_one_factor(loop):
    true = loop[0][:3]
    clean = spoiled(true, dice(), 2.5, noise=0., outliers=0.)
    solid = true.isfinite()
    torch.testing.assert_close(clean.depth[solid], 2.5 * true[solid])
    assert (clean.confidence[~solid] == 0).all() and (clean.confidence[solid] >= 0.3).all() and not trusted(clean)[~solid].isfinite().any()
    found = [float((spoiled(true, dice(i)).depth / true)[solid].median()) for i in range(40)]
    assert 0.19 < min(found) < 0.4 and 2.5 < max(found) < 5.1


def test_agreement_is_one_at_the_true_scale_of_a_wall_and_falls_off():
    "Two cameras on the way to a wall: z differs by the step, so only the true scale fits."
    C = torch.tensor([[0., 0., 0.], [0., 0., 3.]])
    R = axes(torch.zeros(2), torch.zeros(2))
    depth = torch.stack([torch.full((16, 32), 10.), torch.full((16, 32), 7.)]) / 4
    values = [agreement(CAMERA, depth, R, C, s) for s in (2., 3.5, 4., 4.5, 8.)]
    assert math.isclose(values[2], 1., abs_tol=1e-5) and values[0] < values[1] < values[2] > values[3] > values[4]
    assert abs(metric_scale(CAMERA, sure(depth), R, C) / 4 - 1) < 0.03


@pytest.mark.parametrize("factor", [0.2, 1., 5.])
def test_the_cameras_steps_give_the_scale(loop, factor):
    depth, R, C = (x[:6] for x in loop)
    assert abs(metric_scale(CAMERA, spoiled(depth, dice(), factor), R, C) * factor - 1) < 0.1


def test_no_step_no_scale(loop):
    depth, R, C = (x[:6] for x in loop)
    with pytest.raises(ValueError, match="^all frames were taken from one place"): metric_scale(CAMERA, sure(depth), R, C[:1].expand(6, 3))


def stream(loop, factors=(1., 3., 0.4, 2., 0.7, 1.5, 4.), noise=0., **options):
    "A Reconstruction after a walk, and the batches its estimator was shown."
    memory, shown, left = PointMemory(0.5), [], iter(10 * factors)
    def network(pictures): shown.append(pictures); return spoiled(pictures, dice(len(shown)), next(left), noise, outliers=0.)
    r = Reconstruction(CAMERA, network, memory, **options)
    for t, (depth, R, C) in enumerate(zip(*loop)): r.add(View(t, depth, R, C))
    close(r)
    return r, shown


def test_without_noise_the_cloud_is_that_of_a_perfect_sensor(loop):
    r, shown = stream(loop, scale=1.)
    for w, factor in zip(r.windows, (1., 3., 0.4, 2., 0.7, 1.5)): assert math.isclose(w.scale, 1 / factor, rel_tol=1e-5)
    for t, depth in enumerate(loop[0]): torch.testing.assert_close(r.known[t].depth, depth, rtol=1e-4, atol=0)
    perfect = PointMemory(0.5)
    for t, (depth, R, C) in enumerate(zip(*loop)):
        xyz, pixel = back_project(CAMERA, R, C, depth)
        perfect.add(xyz, depth.flatten()[pixel], t, CAMERA.f)
    assert abs(len(r.memory) - len(perfect)) < 0.05 * len(perfect)         # some confidences are no more than 0.3


def test_windows_hold_the_new_the_newest_and_the_retrieved(loop):
    r, shown = stream(loop, fresh=6, overlap=2, scale=1.)
    assert [w.new for w in r.windows[:2]] == [tuple(range(6)), tuple(range(6, 12))] and [w.old for w in r.windows[:3]] == [(), (4, 5), (10, 11)]
    assert sum((w.new for w in r.windows), ()) == tuple(range(len(loop[0]))) and len(r.windows[-1].new) == 1
    for w, pictures in zip(r.windows, shown): assert torch.equal(pictures, loop[0][list(w.old + w.new)])
    r = Reconstruction(CAMERA, sure, PointMemory(0.5), fresh=3, scale=1.)
    for t in range(6): r.add(View(t, loop[0][t], loop[1][t], loop[2][t]), retrieved=(0, 5, 99))
    assert r.windows[1].old == (0, 1, 2)                                   # 5 is not known yet, 99 never was
    with pytest.raises(ValueError, match="^frame 3 is a key frame already$"): r.add(View(3, loop[0][3], loop[1][3], loop[2][3]))


def test_old_frames_keep_their_depth_and_add_no_points(loop):
    r, _ = stream([x[:6] for x in loop], fresh=6, scale=1.)
    before, points = r.known[5].depth.clone(), len(r.memory)
    for t in range(6, 12): r.add(View(t, loop[0][t], loop[1][t], loop[2][t]))
    assert torch.equal(r.known[5].depth, before) and r.windows[1].old == (4, 5)
    assert set(r.memory.src.tolist()) <= set(range(12)) and len(r.memory) > points


def test_the_first_window_waits_for_a_step(loop):
    "A walker that turns on the spot is not estimated; two blocks on, all that waited is."
    depth, R, C = loop
    r = Reconstruction(CAMERA, sure, PointMemory(0.5), fresh=2)
    for t in range(4): assert r.add(View(t, depth[0], R[0], C[0])) == 0
    assert not r.windows
    assert r.add(View(4, depth[3], R[3], C[3])) > 0 and r.windows[0].new == (0, 1, 2, 3, 4)


def test_nothing_waiting_adds_nothing():
    r = Reconstruction(CAMERA, sure, PointMemory(0.5))
    assert close(r) == 0 and r.windows == []
    for options in (dict(fresh=0), dict(overlap=0)):
        with pytest.raises(ValueError, match="^a window needs a new frame"): Reconstruction(CAMERA, sure, PointMemory(0.5), **options)


def test_noise_in_the_divisor_shrinks_the_scale_by_its_square():
    g, true = dice(), 2 + 30 * torch.rand(400, 16, 32, generator=dice(1))
    s = scale_align(spoiled(true, g, 1., 0.1, 0.), spoiled(true, g, 1., 0.1, 0.))
    assert math.isclose(s, 1 / 1.01, abs_tol=2e-3)
