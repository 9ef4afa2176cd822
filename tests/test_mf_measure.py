"""The verdicts of chapter 7 follow from the table, and the table from what was remembered."""
import pytest
import torch
from llmwatch_course.foundations.results import load_claims
from llmwatch_course.memory_forcing import measure
from llmwatch_course.memory_forcing.camera import Camera
from llmwatch_course.memory_forcing.measure import Config, judge, model_of, of, ratios, recall
from llmwatch_course.memory_forcing.render import Frames
from llmwatch_course.memory_forcing.trajectories import clips
from llmwatch_course.memory_forcing.windows import ARMS
from llmwatch_course.memory_forcing.world import SPLITS, where

CPU = torch.device("cpu")


def planted(psnr: dict[str, float], distance: dict[str, float]) -> list[dict]:
    "A table whose numbers we chose."
    rows = []
    for task in ("turntable", "confined", "expedition"):
        for model in ("mean frame", "last frame", *ARMS):
            ways = ("true history", "own frames too") if "hybrid" in model else ("none",)
            rows += [{"task": task, "model": model, "memory": way, "first 16": psnr[model], "from 16 on": psnr[model], "Fréchet": distance[model]} for way in ways]
    return rows


def test_five_verdicts_by_hand():
    psnr = dict(zip(("mean frame", "last frame", *ARMS), (12., 11., 9., 9., 18., 17., 16., 17.), strict=True))
    distance = dict(zip(("mean frame", "last frame", *ARMS), (8., 2., 4., 4., 5., 6., 3., 1.), strict=True))
    found = {r.claim: r.value for r in judge(planted(psnr, distance))}
    assert found == {"mf-revisit": 17 - 12, "mf-explore": 3/2, "mf-harm": 5/4, "mf-quality": 1/4, "mf-chain": 17 - 16}


def test_a_held_frame_is_no_exploration():
    "What passes the first form of the line, a last frame held still, fails the raised one by definition of its baseline."
    psnr, distance = (dict.fromkeys(("mean frame", "last frame", *ARMS), 1.) for _ in range(2))
    distance |= {"temporal": 4., "hybrid": 4., "last frame": 2.}
    rows = planted(psnr, distance)
    assert ratios(rows, "expedition", "")["last frame"] <= 1.05 < next(r for r in judge(rows) if r.claim == "mf-explore").value


def test_each_row_is_found_by_its_memory():
    rows = planted(*(dict.fromkeys(("mean frame", "last frame", *ARMS), 1.) for _ in range(2)))
    rows[-1]["Fréchet"] = 7.
    assert of(rows, "expedition", "hybrid + chained", "Fréchet", "own frames too") == 7 and of(rows, "expedition", "hybrid + chained", "Fréchet") == 1
    with pytest.raises(StopIteration): of(rows, "expedition", "nobody", "Fréchet")


def test_what_the_two_memories_count():
    "A memory of the history never names later frames; one that goes on does, and both agree on the first frame to come."
    camera, known, frames = Camera(8, 32), 10, 20
    world, walk, seen = clips("turntable", SPLITS["validation"][:1], frames, camera)
    R, C = (o[0] for o in where(world, walk.poses))
    fixed, grown, drawn = recall(Frames(*(o[0] for o in seen)), camera, R, C, known)
    assert fixed.shape == grown.shape == (frames, frames) and drawn.shape == (frames - known, 3, 8, 32)
    assert (fixed[:known] == 0).all() and (fixed[:, known:] == 0).all() and fixed[known:].sum() > 0
    assert (grown[:, known:].sum() > 0) and (grown.triu() == 0).all()
    assert torch.equal(fixed[known], grown[known])


def test_nothing_of_the_future_is_painted():
    "Frames to come may be anything: the warp is the same."
    camera, known, frames = Camera(8, 32), 8, 12
    world, walk, seen = clips("expedition", SPLITS["validation"][1:2], frames, camera)
    R, C = (o[0] for o in where(world, walk.poses))
    one = Frames(*(o[0].clone() for o in seen))
    before = recall(one, camera, R, C, known)[2]
    one.rgb[known:] = 0
    assert torch.equal(recall(one, camera, R, C, known)[2], before)


@pytest.mark.parametrize("seed", range(measure.SHIPPED))
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_shipped(arm, seed):
    model = model_of(arm, Config(), seed, CPU)
    assert all(p.isfinite().all() for p in model.parameters()) and not model.training
    assert sum(p.numel() for p in model.parameters()) == 302_499


def test_tasks_and_training_share_no_world():
    assert not set(SPLITS["train"]) & set(SPLITS["test"])
    claims = [name for name, claim in load_claims().items() if claim.topic == "memory_forcing"]
    assert len(claims) == 8
