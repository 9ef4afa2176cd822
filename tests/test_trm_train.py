"""A run that is killed goes on to the same weights; two processes train what one does; the best average is kept."""
import os, subprocess, sys
from pathlib import Path
import pytest, torch
from llmwatch_course.trm import train as T
from llmwatch_course.trm.network import Plain, Size
from llmwatch_course.trm.recursion import TRM
from llmwatch_course.trm.slots import Data
from llmwatch_course.trm.sudoku import Box, generate, symmetric, to_tokens

ROOT = Path(__file__).resolve().parents[1]
TINY = Size(cells=16, vocab=6, width=16, prefix=2, heads=2, hidden=32, token_hidden=16)
BOX = Box(2, 2)

def boards(n=24, ids=None):
    p = generate(n, BOX, 0)
    return Data(to_tokens(p.puzzles), to_tokens(p.answers), ids, lambda t, a, g: symmetric(t, a, BOX, g))

def new(kind=TRM, **kw):
    torch.manual_seed(0)
    return kind(TINY, **kw)

def same(a, b):
    assert a.history == b.history and a.step == b.step
    for x, y in zip([*a.model.state_dict().values(), *a.ema.weights.values(), *vars(T.slots_of(a)).values()],
                    [*b.model.state_dict().values(), *b.ema.weights.values(), *vars(T.slots_of(b)).values()]): assert torch.equal(x, y)
    assert a.extra.keys() == b.extra.keys() and all(torch.equal(v, b.extra[k]) if isinstance(v, torch.Tensor) else v == b.extra[k] for k, v in a.extra.items())

# ---- resume

class PowerCut(Exception): pass

@pytest.mark.parametrize("cut", [1, 7, 11])
def test_killed_anywhere_goes_on_to_the_same_run(tmp_path, monkeypatch, cut):
    data = boards(ids=torch.arange(24) % 5)
    recipe = T.Recipe(batch=4, warmup=3, limit=4, optimizer="adam-atan2", curriculum=((0, 1, 1), (0.5, 2, 2)))
    run = lambda **kw: T.train(new(), data, recipe, 12, seed=3, validation=(data.questions, data.labels), every=2, **kw)
    whole, count = run(), 0
    def dies(*args, real=T.supervise):
        nonlocal count
        count += 1
        if count == cut: raise PowerCut
        return real(*args)
    with monkeypatch.context() as m:
        m.setattr(T, "supervise", dies)
        with pytest.raises(PowerCut): run(checkpoint=tmp_path/"run.safetensors")
    same(whole, run(checkpoint=tmp_path/"run.safetensors"))

def test_same_seed_same_run():
    run = lambda seed: T.train(new(), boards(), T.Recipe(batch=4), 4, seed=seed, every=1)
    same(run(0), run(0))
    assert run(0).history != run(1).history

# ---- two processes

SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_trm_train import *
from llmwatch_course.foundations.training import gather, join, rank
join("cpu")
data = boards(ids=torch.arange(24) % 5)
state = T.train(new(cycles=1, n=1), data, T.Recipe(batch=8, warmup=2, limit=3, explore=0.5), 10, validation=(data.questions, data.labels), every=5)
slots = {{k: v if k == "example" else gather(v) for k, v in vars(T.slots_of(state)).items()}}
if rank() == 0: torch.save([state.model.state_dict(), state.ema.weights, state.history, slots, state.extra["rows"]], {out!r})
"""

def test_two_processes_train_what_one_does(tmp_path):
    runs = []
    for n in (1, 2):
        script, out = tmp_path/f"{n}.py", str(tmp_path/f"{n}.pt")
        script.write_text(SCRIPT.format(tests=str(ROOT/"tests"), out=out))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", str(script)] if n > 1 else [sys.executable, str(script)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(torch.load(out))
    (one, ema, history, slots, rows), (one2, ema2, history2, slots2, rows2) = runs
    for a, b in ((one, one2), (ema, ema2), (slots, slots2)): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(rows, rows2)
    assert rows.abs().max() > 0 and [h["step"] for h in history] == [h["step"] for h in history2]
    for a, b in zip(history, history2): assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["solved"] == b["solved"]

# ---- what is trained

def test_every_model_learns_with_the_same_trainer():
    from llmwatch_course.trm.hrm import HRM
    for kind in (TRM, HRM, Plain):
        state = T.train(new(kind), boards(), T.Recipe(batch=8, warmup=5), 30, every=1)
        loss = [h["loss"] for h in state.history]
        assert sum(loss[-5:]) < sum(loss[:5])

def test_eight_puzzles_are_learned_by_heart():
    p = generate(8, BOX, 0)
    data = Data(to_tokens(p.puzzles), to_tokens(p.answers))
    torch.manual_seed(0)
    wider = TRM(Size(cells=16, vocab=6, width=32, prefix=2, heads=2, hidden=64, token_hidden=32), n=2, cycles=1)
    model = T.finished(T.train(wider, data, T.Recipe(batch=8, lr=5e-3, warmup=10, weight_decay=0.1, ema=0.9, limit=4, explore=0.5), 190))
    assert T.solved(model, data.questions, data.labels, 4) == 1
    y, z = model.start(8)
    for _ in range(4): output = model(data.questions, y, z); y, z = output.y, output.z
    assert (output.halt > 0).all()

def test_best_average_is_kept(monkeypatch):
    scores, seen = iter([0.2, 0.7, 0.7, 0.1]), {}
    def score(model, *_):
        seen[len(seen)] = {k: v.clone() for k, v in model.state_dict().items()}
        return next(scores)
    monkeypatch.setattr(T, "solved", score)
    data = boards()
    state = T.train(new(), data, T.Recipe(batch=4), 8, validation=(data.questions, data.labels), every=2)
    assert state.extra["best.score"] == pytest.approx(0.7) and [h["solved"] for h in state.history] == pytest.approx([0.2, 0.7, 0.7, 0.1])
    for k, v in T.finished(state).state_dict().items(): assert torch.equal(v, seen[2][k])      # of equals the later one

def test_without_validation_the_last_average_is_used():
    state = T.train(new(), boards(), T.Recipe(batch=4), 3)
    for k, v in T.finished(state).state_dict().items(): assert torch.equal(v, state.ema.weights[k])

def test_curriculum_sets_the_depth(monkeypatch):
    depths = []
    def watch(state, *rest, real=T.supervise):
        depths.append((state.model.cycles, state.model.n))
        return real(state, *rest)
    monkeypatch.setattr(T, "supervise", watch)
    state = T.train(new(n=3, cycles=3), boards(), T.Recipe(batch=4, curriculum=((0, 1, 1), (0.3, 2, 2), (0.6, 3, 3))), 10)
    assert depths == [(1, 1)]*3 + [(2, 2)]*3 + [(3, 3)]*4 and T.finished(state).n == 3

def test_rows_are_trained_only_where_they_occur():
    data = boards(ids=torch.tensor([2, 4] * 12))
    rows = T.train(new(), data, T.Recipe(batch=4), 3).extra["rows"]
    assert rows.shape == (5, 16) and (rows.abs().sum(1) > 0).tolist() == [False, False, True, False, True]

def test_easier_boards_only_gain_givens():
    data, g = boards(), torch.Generator().manual_seed(0)
    easy = T.easier(data.questions, data.labels, g, most=1.0)
    given = data.questions > 1
    assert torch.equal(easy[given], data.questions[given]) and torch.equal(easy[~given & (easy > 1)], data.labels[~given & (easy > 1)]) and (easy > 1).sum() > given.sum()

def test_bfloat16_and_compile(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    state = T.train(new(), boards(), T.Recipe(batch=4, precision="bfloat16", compile=True), 3, every=1)
    assert compiled == [state.model] and all(p.dtype == torch.float32 for p in state.model.parameters())

# ---- what cannot be

def test_bad_recipes_get_a_sentence():
    with pytest.raises(ValueError, match="unknown optimizer 'adamW'; did you mean 'adamw'"): T.new_state(new(), boards(), T.Recipe(optimizer="adamW"))
    with pytest.raises(ValueError, match="unknown precision 'half'"): T.new_state(new(), boards(), T.Recipe(precision="half"))

def test_command_writes_the_weights_and_goes_on(tmp_path, monkeypatch, capsys):
    small = lambda seed: T.on_boards(new(), BOX, generate(16, BOX, seed), generate(4, BOX, seed + 1), T.Recipe(batch=4))
    monkeypatch.setitem(T.TASKS, "sudoku6", small)
    out = tmp_path/"w.safetensors"
    for steps in (2, 4): T.main(["sudoku6", "--steps", str(steps), "--out", str(out), "--every", "2", "--device", "cpu"])
    assert out.exists() and out.with_suffix(".run").exists() and "of validation solved" in capsys.readouterr().out

def test_mazes_are_a_task(tmp_path, capsys):
    out = tmp_path/"w.safetensors"
    T.main(["maze9", "--steps", "1", "--out", str(out), "--device", "cpu"])
    assert out.exists() and "of validation solved" in capsys.readouterr().out
