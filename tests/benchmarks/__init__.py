"""Ours beside the peers. Each module is named after its topic and has `rows()`: what, ours, peer, ratio (above 1: ours is better), spread of the ratio, unit, aim."""
import statistics, time
from collections.abc import Callable


def seconds(call: Callable) -> float:
    start = time.perf_counter(); call()
    return time.perf_counter() - start


def side_by_side(what: str, ours: Callable, peer: Callable, aim: str = "", repeats: int = 7, per: int = 1) -> dict:
    "Both in turns, after one round to warm up: medians of `repeats` in ms per step (`per` steps a call), median and range of the ratio peer / ours."
    pairs = [(seconds(ours), seconds(peer)) if i % 2 else (seconds(peer), seconds(ours))[::-1] for i in range(repeats + 1)][1:]
    mine, theirs = (statistics.median(p) * 1000 / per for p in zip(*pairs))
    ratios = sorted(b / a for a, b in pairs)
    return dict(what=what, ours=round(mine, 2), peer=round(theirs, 2), ratio=round(statistics.median(ratios), 2), spread=f"{ratios[0]:.2f}-{ratios[-1]:.2f}", unit="ms", aim=aim)

