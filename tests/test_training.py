"""A run killed at any moment goes on to the same curve; two processes do what one does; bad files get a sentence."""
import inspect, json, math, os, random, signal, subprocess, sys, textwrap, threading, time
from pathlib import Path
import numpy as np
import pytest, torch
from torch import nn
from llmwatch_course.foundations import training as T
from llmwatch_course.foundations.settings import seed_all

ROOT = Path(__file__).resolve().parents[1]
def new(seed=0):
    g = seed_all(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(.1), nn.Linear(16, 1))
    return T.State(model, torch.optim.AdamW(model.parameters(), 1e-2), T.warmup_cosine(5, 60), T.EMA(model, .9), g, {"seen": torch.zeros(()), "last": None})

def step(state, pause=0.0):
    x = torch.randn(16, 4, generator=state.generator) + .1*random.random() + .1*np.random.rand() + .1*random.gauss(0, 1) + .1*torch.rand(())
    state.extra["seen"] = state.extra["seen"] + x.mean(); state.extra["last"] = state.step
    time.sleep(pause)
    return state.update((state.model(x).squeeze(-1) - x.prod(-1) - state.extra["seen"]).square().mean(), clip=1.0)

IMPORTS = """
import json, random, time
from pathlib import Path
import numpy as np, torch
from torch import nn
from llmwatch_course.foundations import training as T
from llmwatch_course.foundations.settings import seed_all
"""
RUN = IMPORTS + inspect.getsource(new) + inspect.getsource(step)  # what the processes below run, before their own lines

def same_run(a, b):
    assert a.history == b.history and a.step == b.step and torch.equal(a.extra["seen"], b.extra["seen"]) and a.extra["last"] == b.extra["last"]
    for x, y in zip([*a.model.state_dict().values(), *a.ema.weights.values()], [*b.model.state_dict().values(), *b.ema.weights.values()]): assert torch.equal(x, y)

def trained(steps):
    "A run that nothing disturbed."
    state = new(); T.fit(step, state, steps)
    return state

def launch(tmp_path, body, *command):
    "Start a process that runs `body` after the definitions above."
    script = tmp_path/"run.py"; script.write_text(RUN + textwrap.dedent(body))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command, str(script)], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

def finished(process):
    try: out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); raise
    assert process.returncode == 0, err
    return out

# ---- resume

def test_killed_in_the_middle_resumes_to_the_same_curve(tmp_path):
    body = """
        torch.set_num_threads(1)
        state = new()
        def slow(state):
            print(state.step, flush=True)
            return step(state, .01)
        T.fit(slow, state, 60, checkpoint=Path("c.safetensors"), save_every=7)
        T.save(state, "end.safetensors")
    """
    for until in (17, 40):  # a save happened before each, and steps were done after it
        p = launch(tmp_path, body)
        while int(p.stdout.readline()) < until: pass
        p.send_signal(signal.SIGKILL); p.wait()
    first = finished(launch(tmp_path, body)).split()[0]
    assert 35 <= int(first) < 60  # it went on from a save
    torch.set_num_threads(1)
    whole = trained(60)
    resumed = new(1); T.resume(resumed, tmp_path/"end.safetensors")
    same_run(whole, resumed)

@pytest.mark.parametrize("at", [0, 6, 7, 8, 29])
def test_stopped_by_an_error_anywhere(tmp_path, at):
    def cut(state):
        if state.step == at: raise RuntimeError("power")
        return step(state)
    whole, path = trained(30), tmp_path/"c.safetensors"
    with pytest.raises(RuntimeError, match="power"): T.fit(cut, new(), 30, checkpoint=path, save_every=7)
    assert path.exists() == (at >= 7)
    again = new(1 if at >= 7 else 0)  # other weights and generators wherever a save replaces them
    T.fit(step, again, 30, checkpoint=path, save_every=7)
    same_run(whole, again)
    assert T.fit(step, again, 30, checkpoint=path) == whole.history  # done is done

def test_ctrl_c_finishes_the_step_saves_and_goes_on(tmp_path):
    whole, path = trained(30), tmp_path/"c.safetensors"
    state = new()
    def interrupted(state):
        if state.step == 11: os.kill(os.getpid(), signal.SIGINT)
        return step(state)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 12"): T.fit(interrupted, state, 30, checkpoint=path)
    assert signal.getsignal(signal.SIGINT) is before and state.step == 12 == len(state.history)
    T.fit(step, state, 30); same_run(whole, state)  # in the same session
    again = new(1); T.fit(step, again, 30, checkpoint=path); same_run(whole, again)  # and in another one

def test_outside_the_main_thread_it_trains_too():
    state = new()
    t = threading.Thread(target=T.fit, args=(step, state, 3)); t.start(); t.join()
    assert state.step == 3

def test_other_optimisers_and_dtypes_resume(tmp_path):
    for make in (lambda p: torch.optim.SGD(p, .01, momentum=.9), lambda p: torch.optim.RMSprop(p, .01), lambda p: torch.optim.Adagrad(p, .01)):
        def fresh(make=make):
            torch.manual_seed(0); m = nn.Linear(3, 1).to(torch.bfloat16)
            return T.State(m, make(m.parameters()))
        def go(s): return s.update(s.model(torch.randn(4, 3, generator=s.generator).bfloat16()).float().square().mean())
        a, b, path = fresh(), fresh(), tmp_path/f"{make(nn.Linear(1, 1).parameters()).__class__.__name__}.safetensors"
        T.fit(go, a, 6, checkpoint=path, save_every=3); T.fit(go, a, 12)
        T.fit(go, b, 12, checkpoint=path); assert a.history == b.history

# ---- several processes

def test_two_processes_end_where_one_does(tmp_path):
    body = """
        def go(state):
            x = torch.randn(16, 4, generator=state.generator, dtype=torch.float64)
            x = T.share(x)
            return state.update((state.model(x).squeeze(-1) - x.prod(-1)).square().mean(), clip=.5)
        def plain():
            g = seed_all(0); m = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
            return T.State(m, torch.optim.AdamW(m.parameters(), 1e-2), ema=T.EMA(m, .9), generator=g)
        T.join("cpu")
        state = plain(); T.fit(go, state, 12, checkpoint=Path(f"c{T.world()}.safetensors"), save_every=5)
        again = plain(); T.fit(go, again, 20, checkpoint=Path(f"c{T.world()}.safetensors"))
        T.fit(go, state, 20); assert state.history == again.history
        T.save_weights(state.model, f"w{T.world()}.{T.rank()}", None)
        Path(f"h{T.world()}.{T.rank()}").write_text(json.dumps(state.history))
    """
    finished(launch(tmp_path, body))
    finished(launch(tmp_path, body, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"))
    assert (tmp_path/"w2.0").read_bytes() == (tmp_path/"w2.1").read_bytes() and (tmp_path/"h2.0").read_text() == (tmp_path/"h2.1").read_text()
    model = lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    one, two = T.load_weights(model(), tmp_path/"w1.0"), T.load_weights(model(), tmp_path/"w2.0")
    for a, b in zip(one.parameters(), two.parameters()): torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    curves = [[row["loss"] for row in json.loads((tmp_path/f"h{n}.0").read_text())] for n in (1, 2)]
    assert np.allclose(*curves, rtol=1e-9)
    with pytest.raises(ValueError, match="made by 2 processes"): T.resume(T.State(model(), torch.optim.AdamW(model().parameters())), tmp_path/"c2.safetensors")

# ---- pieces

def test_schedules():
    f = T.warmup_cosine(10, 110, floor=.1)
    assert f(10) == 1 and math.isclose(f(60), .55) and math.isclose(f(110), .1) and math.isclose(f(500), .1) and all(f(i) < f(i + 1) for i in range(9))
    assert [T.constant(3)(i) for i in (0, 3, 9)] == [.25, 1, 1] and T.warmup_cosine(0, 1)(0) == 1

def test_the_rate_follows_the_schedule_and_groups_keep_their_own():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    m = nn.ParameterList([a, b])
    s = T.State(m, torch.optim.SGD([{"params": [a], "lr": 1.}, {"params": [b], "lr": .1}]), T.constant(1))
    s.update(a.sum() + b.sum())
    assert [g["lr"] for g in s.optimizer.param_groups] == [.5, .05] and math.isclose(a.item(), .5) and math.isclose(b.item(), .95, rel_tol=1e-6)

def test_clipping_shortens_the_gradient():
    m = nn.Linear(1, 1, bias=False); nn.init.zeros_(m.weight)
    s = T.State(m, torch.optim.SGD(m.parameters(), 1.))
    assert s.update(30*m.weight.sum(), clip=2.)["norm"] == 30 and math.isclose(m.weight.item(), -2, rel_tol=1e-5)

def test_ema_keeps_integers_and_gives_the_weights_back():
    m = nn.BatchNorm1d(2); e = T.EMA(m, .5)
    m.num_batches_tracked += 4; m.weight.data += 1; e.update(m)
    with pytest.raises(RuntimeError), e.applied(m): assert m.weight[0] == 1.5 and m.num_batches_tracked == 4; raise RuntimeError
    assert m.weight[0] == 2

def test_history_every_few_steps_and_the_last():
    assert [row["step"] for row in T.fit(step, new(), 10, every=4)] == [4, 8, 10]

def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path):
    def bad(state): return step(state) if state.step < 5 else {"loss": torch.tensor(math.nan)}
    with pytest.raises(FloatingPointError, match="the loss is nan at step 6"): T.fit(bad, new(), 9, checkpoint=tmp_path/"c", save_every=1)
    again = new(1); T.resume(again, tmp_path/"c"); assert again.step == 5

def test_a_shared_batch_must_divide(monkeypatch):
    assert T.share(torch.arange(3)).tolist() == [0, 1, 2]
    monkeypatch.setattr(T, "world", lambda: 2)
    assert T.share(torch.arange(4)).tolist() == [0, 1]
    with pytest.raises(ValueError, match="batch of 3 cannot be divided among 2"): T.share(torch.arange(3))

# ---- bad files

def test_every_cut_of_a_checkpoint_is_refused(tmp_path):
    T.save(new(), tmp_path/"c"); data, state = (tmp_path/"c").read_bytes(), new()
    for n in (0, 1, 7, 8, 9, 100, len(data)//2, len(data) - 1):
        (tmp_path/"cut").write_bytes(data[:n])
        with pytest.raises(ValueError, match="is not a checkpoint of a run") as e: T.resume(state, tmp_path/"cut")
        assert "\n" not in str(e.value)
    T.save_weights(nn.Linear(1, 1), tmp_path/"w")
    with pytest.raises(ValueError, match="is not a checkpoint of a run"): T.resume(state, tmp_path/"w")

def test_another_model_is_refused_and_a_pickle_never_loaded(tmp_path):
    T.save(new(), tmp_path/"c"); other = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="another model or optimiser"): T.resume(T.State(other, torch.optim.SGD(other.parameters(), .1)), tmp_path/"c")
    torch.save({"a": 1}, tmp_path/"p")
    with pytest.raises(ValueError, match="not a checkpoint"): T.resume(new(), tmp_path/"p")
    with pytest.raises(ValueError, match="does not fit this model"): T.load_weights(other, tmp_path/"p")
    with pytest.raises(ValueError, match="there is no checkpoint"): T.load_weights(other, tmp_path/"none")

def test_weights_alone(tmp_path):
    a, b = nn.Linear(8, 8), nn.Linear(8, 8)
    assert T.save_weights(a, tmp_path/"h") < T.save_weights(a, tmp_path/"f", None)
    assert torch.equal(T.load_weights(b, tmp_path/"f").weight, a.weight) and torch.equal(T.load_weights(b, tmp_path/"h").weight, a.weight.half().float())
