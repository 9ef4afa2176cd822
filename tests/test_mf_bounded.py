"What is bounded on which walk: points, and what a query over a crop has to touch."
import torch
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.point_memory import PointMemory
from llmwatch_course.memory_forcing.render import Frames, render
from llmwatch_course.memory_forcing.retrieval import KeyFrames, crop, pixel_votes, point_votes
from llmwatch_course.memory_forcing.rivals import remember
from llmwatch_course.memory_forcing.trajectories import confined_walk, expedition, square_loop, turntable
from llmwatch_course.memory_forcing.world import AIR, BlockWorld, where

CAMERA, EVERY = Camera(16, 16), KeyFrames("every")


def walked(walker, frames: int, seed: int = 0, size=(64, 16, 64), **extra):
    world = BlockWorld(seed, size=size)
    poses = walker(world, frames, torch.Generator().manual_seed(seed), **extra).poses
    return world, Frames(*(o[0] for o in render(world, poses, CAMERA))), *(o[0] for o in where(world, poses))


def growth(walk, steps) -> list[int]:
    _, seen, R, C = walk
    memory, points = PointMemory(), []
    for start, stop in zip((0, *steps), steps):
        remember(memory, seen, CAMERA, R, C, range(start, stop), EVERY)
        points.append(len(memory))
    return points


def test_spinning_is_flat_and_an_expedition_outgrows_a_confined_walk():
    spinning = growth(walked(turntable, 48), (16, 17, 48))
    assert len(set(spinning)) == 1
    _, half, whole = growth(walked(confined_walk, 160), (1, 80, 160))
    _, far_half, far_whole = growth(walked(expedition, 160), (1, 80, 160))
    assert whole - half < half / 2 and far_whole - far_half > whole - half


def test_a_lap_again_leaves_nothing_behind():
    lap = 16 + 4 * 5
    memories = []
    for n in (lap, 2 * lap, 3 * lap):
        _, seen, R, C = walked(square_loop, n, edge=5)
        memory = PointMemory()
        kept = remember(memory, seen, CAMERA, R, C, range(n))
        memories.append((kept, memory))
    for kept, memory in memories[1:]:
        assert kept == memories[0][0]
        for name in ("key", "src", "xyz", "radius"): assert torch.equal(getattr(memory, name), getattr(memories[0][1], name))


def test_points_stay_below_25_for_each_exposed_face():
    world, seen, R, C = walked(confined_walk, 200, size=(24, 16, 24))
    memory, solid = PointMemory(), world.blocks[0] != AIR
    remember(memory, seen, CAMERA, R, C, range(200), EVERY)
    exposed = sum(int((solid.narrow(d, 0, n - 1) ^ solid.narrow(d, 1, n - 1)).sum()) for d, n in enumerate(solid.shape))
    assert 0 < len(memory) <= 25 * exposed


def test_a_crop_changes_no_answer_and_touches_less():
    _, seen, R, C = walked(expedition, 200, size=(192, 16, 192))
    memory = PointMemory()
    remember(memory, seen, CAMERA, R, C, range(200), EVERY)
    memory.add(torch.tensor([[2., 2., 2.]]) - 100, torch.ones(1), 200, CAMERA.f)
    for t in range(0, 200, 20):
        part = crop(memory, C[t], 48.)
        assert len(part) < len(memory)
        for vote in (point_votes, pixel_votes): assert vote(part, CAMERA, R[t], C[t], 8) == vote(memory, CAMERA, R[t], C[t], 8)
