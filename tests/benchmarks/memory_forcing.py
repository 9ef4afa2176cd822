"Chapter 7: pictures a second, choosing frames to remember among 2,000, memory attention for all frames at once. About a minute on one core."
import statistics
import torch
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.diffusion import Condition
from llmwatch_course.memory_forcing.model import WorldDiT, looped, read_memory
from llmwatch_course.memory_forcing.render import render
from llmwatch_course.memory_forcing.rivals import retrieval_times
from llmwatch_course.memory_forcing.trajectories import confined_walk
from llmwatch_course.memory_forcing.world import BlockWorld
from tests.benchmarks import seconds, side_by_side

CAMERA, FRAMES = Camera(32, 32), 256


def rows() -> list[dict]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return [*rendering(), *choosing(), *attending()]
    finally: torch.set_num_threads(threads)


def many(call, count: int, repeats: int = 7) -> list[float]:
    "How many a second, sorted; one round to warm up."
    call()
    return sorted(count / seconds(call) for _ in range(repeats))


def ratio(what: str, ours: list[float], peer: list[float], unit: str, aim: str, more_is_better: bool = True) -> dict:
    "Medians of both and of their ratio, with its extremes."
    a, b = statistics.median(ours), statistics.median(peer)
    low, high = (ours[0] / peer[-1], ours[-1] / peer[0]) if more_is_better else (peer[0] / ours[-1], peer[-1] / ours[0])
    return dict(what=what, ours=round(a, 2), peer=round(b, 2), ratio=round(a / b if more_is_better else b / a, 2), spread=f"{low:.2f}-{high:.2f}", unit=unit, aim=aim)


def rendering():
    "A walk in a world, 32 x 32: all pictures together, beside one after the other; then two threads and a GPU beside one thread."
    world = BlockWorld(0)
    poses = confined_walk(world, FRAMES, torch.Generator().manual_seed(0)).poses
    def one_by_one():
        for t in range(FRAMES): render(world, poses[:, t:t + 1], CAMERA)
    one = many(lambda: render(world, poses, CAMERA), FRAMES)
    yield ratio("pictures of 32 x 32 on one core, beside one at a time", one, many(one_by_one, FRAMES, 3), "frames/s", ">= 1,000 frames/s")
    torch.set_num_threads(2)
    two = many(lambda: render(world, poses, CAMERA), FRAMES)
    torch.set_num_threads(1)
    yield ratio("the same on two threads, beside one", two, one, "frames/s", ">= 1.5")
    if not torch.cuda.is_available(): return
    there = BlockWorld(range(16), device="cuda")
    far = confined_walk(there, FRAMES, torch.Generator().manual_seed(0)).poses
    def on_gpu(): render(there, far, CAMERA); torch.cuda.synchronize()
    yield ratio("the same on a GPU, beside one core", many(on_gpu, 16 * FRAMES), one, "frames/s", ">= 50")


def choosing():
    "Eight frames out of 2,000 of a walk in a bounded area, median CPU time; three forms of the field-of-view scan beside the point memory."
    found = [retrieval_times(seed=seed) for seed in range(3)]
    last, half = ([one["rows"][i] for one in found] for i in (-1, 1))
    def times(rows, name): return sorted(row[f"{name} ms"] for row in rows)
    ours = times(last, "point memory")
    aims = {"scan": ">= 20", "view index": "", "scan as published": ">= 500"}
    yield ratio("retrieval at 2,000 frames, beside at 1,000", ours, times(half, "point memory"), "ms", "<= 2 ms, ratio >= 0.67", False)
    for name, aim in aims.items(): yield ratio(f"retrieval at 2,000 frames, beside the {name}", ours, times(last, name), "ms", aim, False)


def attending(worlds: int = 32, frames: int = 4, slots: int = 4):
    "Memory cross-attention of one layer: rays of each query frame in one product, beside a copy of the memory for each frame."
    model, dice = WorldDiT(), torch.Generator().manual_seed(0)
    def noise(*shape): return torch.randn(*shape, generator=dice)
    h = noise(worlds, frames, 8, 64)
    condition = Condition(torch.zeros(worlds, frames, dtype=torch.long), noise(worlds, frames, 8, 6), noise(worlds, slots, 8, 96),
                          noise(worlds, frames, slots, 8, 6), torch.ones(worlds, slots, dtype=torch.bool))
    with torch.no_grad():
        torch.testing.assert_close(read_memory(model, h, condition), looped(model, h, condition))
        yield side_by_side("memory attention of a window of 4, beside a loop over its frames", lambda: read_memory(model, h, condition), lambda: looped(model, h, condition), ">= 1")
