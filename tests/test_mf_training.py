"""Windows are filled as their names say; a run that is killed goes on to the same weights; two processes train one model with dice of their own."""
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest, torch
from torch import nn
from llmwatch_course.memory_forcing import training as T
from llmwatch_course.memory_forcing import windows as W
from llmwatch_course.memory_forcing.diffusion import df_loss

ROOT = Path(__file__).resolve().parents[1]
TINY = replace(T.RECIPES["smoke"], width=16, layers=1, heads=2, frames=20, worlds=3, steps=10, warmup=2, ema=0.5)

@pytest.fixture(scope="module")
def data(): return T.training_clips(TINY)

# ---- windows

def test_votes_count_every_surface_pixel_once(data):
    for clips in data.values():
        votes = clips.votes
        assert not votes.triu(1).any() and (votes.sum(-1) <= 8*32).all()
    turn = data["turntable"].votes
    assert not turn[:, :, 16:].any() and torch.equal(turn[:, 16:].sum(-1), turn[:, :4].sum(-1))

def slow_fill(votes, t, filling, slots, window):
    "Frames of one window's context, the naive way."
    older = [t - window - i for i in range(slots) if t - window - i >= 0]
    best = sorted((s for s in range(t - window + 1) if votes[s] > 0), key=lambda s: (-int(votes[s]), -s))[:slots]
    if filling == "older": return older
    if filling == "retrieved": return best
    return best + [t - window - i for i in range(len(best), slots) if t - window - i >= 0]

@pytest.mark.parametrize("filling", W.FILLINGS)
def test_fill_is_what_a_loop_finds(data, filling):
    for clips in data.values():
        for t in range(3, 20):
            rows = torch.arange(3)
            found, ok = W.fill(clips, rows, torch.full_like(rows, t), filling, 4, 4)
            for w in rows.tolist(): assert found[w][ok[w]].tolist() == slow_fill(clips.votes[w, t], t, filling, 4, 4)

def test_nothing_of_the_window_is_in_its_context(data):
    rows = torch.arange(3)
    for filling in W.FILLINGS:
        found, ok = W.fill(data["confined walk"], rows, torch.full_like(rows, 15), filling, 4, 4)
        assert (found[ok] < 12).all()
    with pytest.raises(ValueError, match="did you mean 'older'"): W.fill(data["expedition"], rows, rows + 9, "oldest", 4, 4)

def test_gather_takes_each_frame_with_its_own_rays(data):
    clips, rows, t = data["confined walk"], torch.tensor([2, 0]), torch.tensor([9, 17])
    x, c = W.gather(clips, rows, t, "both", TINY)
    found, ok = W.fill(clips, rows, t, "both", 4, 4)
    for i, (w, last) in enumerate(zip(rows.tolist(), t.tolist())):
        assert torch.equal(x[i], clips.x[w, last - 3:last + 1]) and torch.equal(c.actions[i], clips.actions[w, last - 3:last + 1])
        assert torch.equal(c.context[i], clips.x[w, found[i]])
        for j in range(4):
            q, m = last - 3 + j, int(found[i, j])
            d = clips.rays @ (clips.R[w, q].T @ clips.R[w, m]).T
            o = clips.R[w, q].T @ (clips.C[w, m] - clips.C[w, q])/8
            torch.testing.assert_close(c.context_rays[i, j, j], torch.cat([torch.linalg.cross(o.expand_as(d), d), d], -1), atol=1e-5, rtol=1e-5)
    assert torch.equal(c.context_mask, ok) and not c.rays[..., :3].any()

def test_go_on_sees_no_future(data):
    clips, model, rows = data["confined walk"], TINY.model(), torch.arange(20)
    other = clips._replace(x=torch.where(rows[:, None, None] < 10, clips.x, torch.nan))
    made = [W.go_on(model, c, 10, 5, "both", TINY, torch.Generator().manual_seed(0), 2, own=True) for c in (clips, other)]
    assert made[0].shape == (3, 5, 8, 96) and torch.equal(*made)

class HalfSize(nn.Module):
    "A coder that keeps the first pixel of each 4 x 4."
    def encode(self, rgb): return rgb[..., ::4, ::4].repeat(1, 3, 1, 1)[:, :8]
    def decode(self, z): return z[:, :3].repeat_interleave(4, -1).repeat_interleave(4, -2)

def test_frames_to_tokens_and_back(monkeypatch):
    rgb = torch.rand(2, 3, 3, 32, 32)
    pixels, latent = W.Sizes((32, 32), (8, 8)), W.Sizes((32, 32), (8, 8), "mf-coder-32")
    torch.testing.assert_close(pixels.decode(pixels.encode(rgb)), rgb)
    monkeypatch.setattr(W, "load_coder", lambda name: HalfSize())
    assert latent.encode(rgb).shape == (2, 3, 16, 32) and latent.model().inp.in_features == 32
    torch.testing.assert_close(latent.decode(latent.encode(rgb)), rgb[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2))

# ---- arms

def test_arms_differ_in_one_thing_at_a_time():
    used = {name: ({f for _, f in arm.parts}, "expedition" in dict(arm.parts)) for name, arm in T.ARMS.items()}
    assert used["temporal"] == ({"older"}, True) and used["temporal, revisits only"] == ({"older"}, False)
    assert used["spatial"] == ({"retrieved"}, False) and used["spatial, mixed data"] == ({"retrieved"}, True)
    assert T.ARMS["hybrid + chained"] == T.ARMS["hybrid"]._replace(chained=True)
    assert len({T.file_of(arm) for arm in T.ARMS}) == len(T.ARMS) and T.file_of("spatial, mixed data") == "mf-spatial-mixed-data"

def test_worlds_of_seeds_and_kinds_are_disjoint(monkeypatch):
    asked = []
    monkeypatch.setattr(T, "make_clips", lambda kind, seeds, *rest: asked.extend(seeds) or W.Clips(*[torch.zeros(1)]*6))
    for seed in range(3): T.training_clips(TINY, seed)
    assert len(asked) == len(set(asked)) == 3*3*3 and set(asked) <= set(T.SPLITS["train"])

# ---- the run

class PowerCut(Exception): pass

class Failing(dict):
    def __init__(self, data, times): super().__init__(data); self.left = times
    def __getitem__(self, kind):
        self.left -= 1
        if self.left < 0: raise PowerCut
        return super().__getitem__(kind)

def same(a, b):
    assert a.history == b.history and a.step == b.step and torch.equal(a.generator.get_state(), b.generator.get_state())
    for x, y in zip([*a.model.state_dict().values(), *a.ema.weights.values()], [*b.model.state_dict().values(), *b.ema.weights.values()]): assert torch.equal(x, y)

@pytest.mark.parametrize("cut", [1, 5, 9])
def test_killed_anywhere_goes_on_to_the_same_run(tmp_path, data, cut):
    run = lambda clips, **kw: T.train("hybrid + chained", clips, replace(TINY, share=0.4), 3, every=2, **kw)
    whole = run(data)
    with pytest.raises(PowerCut): run(Failing(data, cut), checkpoint=tmp_path/"run.safetensors")
    same(whole, run(data, checkpoint=tmp_path/"run.safetensors"))

def test_kinds_take_turns_and_chains_come_last(monkeypatch, data):
    seen = []
    for name in ("window_loss", "chain_loss"):
        monkeypatch.setattr(T, name, lambda model, clips, filling, *rest, name=name: seen.append((name, filling)) or next(model.parameters()).sum())
    T.train("hybrid + chained", data, replace(TINY, share=0.3))
    assert [n for n, _ in seen] == ["window_loss"]*7 + ["chain_loss"]*3 and [f for _, f in seen] == (["retrieved", "retrieved", "older"]*4)[:10]

def test_plain_words(data):
    with pytest.raises(ValueError, match="unknown arm 'hybird'; did you mean 'hybrid'"): T.train("hybird", data, TINY)
    with pytest.raises(ValueError, match="a batch of 6 cannot be divided"): T.new_state(replace(TINY, batch=6))

def test_command(tmp_path):
    out = tmp_path/"mf.safetensors"
    assert T.main(["spatial", "--scale", "smoke", "--steps", "2", "--device", "cpu", "--out", str(out)]) == 0
    assert out.exists() and out.with_suffix(".run").exists()

# ---- two processes

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_mf_training import T, TINY, replace
from llmwatch_course.foundations.training import gather, join, rank
join("cpu")
state = T.train("hybrid + chained", T.training_clips(TINY), replace(TINY, steps=4, share=0.5, warmup=0), every=1)
flat = torch.cat([p.flatten() for p in state.model.state_dict().values()])[None]
if rank() == 0: torch.save([gather(flat), state.history], {out!r})
else: gather(flat)
"""

def one_process_with_two_dice(data, recipe):
    "What two processes should do: the mean of two losses, each of half a batch."
    state = T.new_state(recipe)
    dice = [torch.Generator().manual_seed(r << 32) for r in range(2)]
    half = replace(recipe, batch=recipe.batch//2)
    for i in range(recipe.steps):
        kind, filling = T.ARMS["hybrid + chained"].parts[i % 3]
        loss = T.window_loss if i < recipe.steps/2 else T.chain_loss
        state.update(sum(loss(state.model, data[kind], filling, half, d) for d in dice)/2, recipe.clip); state.step += 1
    return torch.cat([p.flatten() for p in state.model.state_dict().values()])

def test_two_processes_train_one_model(tmp_path, data):
    script, out = tmp_path/"two.py", tmp_path/"two.pt"
    script.write_text(SCRIPT.format(tests=str(ROOT/"tests"), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    both, history = torch.load(out)
    assert torch.equal(both[0], both[1]) and len(history) == 4
    torch.testing.assert_close(both[0], one_process_with_two_dice(data, replace(TINY, steps=4, warmup=0)), rtol=1e-3, atol=1e-4)

def test_a_window_is_the_plain_loss(data):
    "`window_loss` draws, gathers and asks diffusion forcing; nothing else."
    model = TINY.model()
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    rows, t = W.draw(data["expedition"], "older", TINY, b, TINY.batch)
    assert torch.equal(T.window_loss(model, data["expedition"], "older", TINY, a), df_loss(model, *W.gather(data["expedition"], rows, t, "older", TINY), b))
