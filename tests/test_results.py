"""Claims are well formed, verdicts follow from numbers, files survive, and what is committed is consistent."""
import json, math, random, re, signal, statistics, subprocess, sys, textwrap, time, types
from pathlib import Path
import numpy as np
import pytest, torch
from hypothesis import given, settings as effort, strategies as st
from llmwatch_course.foundations import results as R

DATA = Path(R.__file__).resolve().parents[2]/"data"
DESIGN = """kv-exact kv-speed kv-forget kv-sinks kv-window ahn-flops ahn-cache ahn-flat ahn-swa ahn-full ahn-recall ahn-table
flow-broadcast flow-gain flow-errors flow-sft flow-turns flow-credit flow-norm flow-size flow-modular flow-table
trm-size trm-share trm-vs-plain trm-vs-size trm-vs-hrm trm-maze trm-llm trm-sudoku trm-arc
ace-brevity ace-collapse ace-gain ace-nolabel ace-online ace-cost ace-table ace-appworld
cwm-legal cwm-depth cwm-tactics cwm-general cwm-hidden cwm-value cwm-verified cwm-table
mf-revisit mf-explore mf-harm mf-quality mf-chain mf-flat mf-retrieval mf-table
vgb-amplify vgb-robust vgb-law vgb-frontier vgb-language vgb-reason""".split()
CLAIM = R.Claim("coin-fair", "coin", "A coin is fair.", "Bernoulli, 1713", "measured", ["small", "gpu"], "share of heads", ">= 0.4")
ABOUT = {"scale": "small", "device": "cpu", "seconds": 1.0, "versions": {}, "commit": "unknown", "command": "x"}

def with_(claim=CLAIM, **change): return R.Claim(**{**vars(claim), **change})
def record(values, claim=CLAIM, roles=None, **about):
    rec = None
    for seed, v in enumerate(values): rec = R.merged(rec, R.Result(claim.id, v, roles=roles or {}), claim, seed, ABOUT | about)
    return rec

# ---- claims

def test_the_committed_claims_are_the_planned_ones():
    claims = R.load_claims(DATA/"claims.toml")
    assert sorted(claims) == sorted(DESIGN)
    for c in claims.values():
        assert all(len(t) > 10 for t in (c.newsletter, c.paper, c.metric)), c.id
        assert c.accept or c.kind == "derived" or c.note, f"{c.id}: nothing decides it and nothing says why"
    assert len({c.topic for c in claims.values()}) == 8

@pytest.mark.parametrize("line, said", [
    ('kind = "guessed"', "kind is 'guessed'"), ('accept = "about 3"', "must be a comparison"), ('scales = ["smoke"]', "scales must be"),
    ('metrik = "x"', "unknown field 'metrik'; did you mean 'metric'"), ('kind = 3 3', "cannot be read"), ('accept = "__import__(1)"', "must be a comparison")])
def test_a_bad_claim_is_named(tmp_path, line, said):
    base = {"topic": '"t"', "newsletter": '"n"', "paper": '"p"', "kind": '"measured"', "scales": '["small"]', "metric": '"m"'}
    base.pop(line.split()[0], None)
    (tmp_path/"c.toml").write_text("[x-y]\n" + "\n".join(f"{k} = {v}" for k, v in base.items()) + f"\n{line}\n")
    with pytest.raises(ValueError, match=said): R.load_claims(tmp_path/"c.toml")

def test_missing_parts_are_named(tmp_path):
    (tmp_path/"c.toml").write_text('[x-y]\ntopic = "t"\n')
    with pytest.raises(ValueError, match="claim x-y: nothing is said about newsletter, paper"): R.load_claims(tmp_path/"c.toml")
    with pytest.raises(ValueError, match="there is no .*LLMWATCH_DATA_DIR"): R.load_claims(tmp_path/"none.toml")

@given(st.sampled_from(["<=", ">=", "<", ">", "=="]), st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.6g}")), st.floats(-1e6, 1e6))
@effort(max_examples=200, deadline=None)
def test_holds_is_the_comparison(op, bound, value):
    assert R.holds(f"{op} {bound!r}", value) is eval(f"value {op} bound")  # eval as the oracle, never in the package

# ---- verdicts

@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12))
@effort(max_examples=300, deadline=None)
def test_verdict_follows_the_rule(values):
    word = R.verdict(CLAIM, record(values)).word
    share = sum(v >= 0.4 for v in values)/len(values)
    if len(values) < 3: assert word == "open"
    elif statistics.fmean(values) >= 0.4 and share >= 2/3 - 1e-12: assert word == "reproduced"
    else: assert word == "not reproduced"

@pytest.mark.parametrize("values, word", [
    ([.5, .5, .35], "reproduced"), ([.9, .3, .3], "not reproduced"), ([.41, .41, .1], "not reproduced"), ([.5]*4 + [.3]*2, "reproduced"),
    ([.9]*3 + [.3]*2, "not reproduced"), ([.4]*3, "reproduced"), ([.5], "open"), ([.5, .5], "open"), ([.1]*5, "not reproduced")])
def test_two_thirds_and_the_mean(values, word): assert R.verdict(CLAIM, record(values)).word == word

def test_words_for_other_kinds():
    assert R.verdict(CLAIM, None) == ("open", "no result yet") and R.verdict(with_(note="How ours differs."), None) == R.verdict(CLAIM, None)
    assert R.verdict(CLAIM, record([.5])).reason == "1 seed" and R.verdict(CLAIM, record([.5, .5])).reason == "2 seeds"
    assert R.verdict(CLAIM, record([.5]*3, scale="smoke")).word == "open"
    derived = with_(kind="derived")
    assert R.verdict(derived, record([.5], derived)).word == "derived" and R.verdict(derived, record([.3], derived)).word == "not reproduced"
    assert R.verdict(with_(derived, accept=""), record([.3])).word == "derived" and R.verdict(with_(accept=""), record([.3]*3)).word == "open"

@pytest.mark.parametrize("player, values, word", [
    ("model", [.5]*3, "reproduced"), ("program", [.5]*3, "mechanism shown"), ("hand-written", [.5]*3, "mechanism shown"), ("program", [.3]*3, "not reproduced"), ("program", [.5], "open")])
def test_who_played_the_deciding_role(player, values, word):
    claim = with_(deciding=["thrower"])
    assert R.verdict(claim, record(values, claim, {"thrower": player, "other": "program"})).word == word

# ---- records

@given(st.permutations(range(6)), st.lists(st.floats(-5, 5), min_size=6, max_size=6))
@effort(max_examples=100, deadline=None)
def test_seeds_join_in_any_order(order, values):
    rec = None
    for s in [*order, order[0]]: rec = R.merged(rec, R.Result("coin-fair", values[s], {"b": values[s] + 1}, table=[{"seed": s}]), CLAIM, s, ABOUT)
    assert rec["seeds"] == list(range(6)) and rec["value"] == statistics.fmean(values) and rec["spread"] == statistics.stdev(values)
    assert math.isclose(rec["baselines"]["b"], rec["value"] + 1, abs_tol=1e-9) and rec["table"] == [{"seed": 0}]
    assert json.loads(json.dumps(rec, allow_nan=False)) == rec

def test_what_cannot_be_joined_starts_anew():
    old = record([.5, .5])
    assert R.merged(old, R.Result("coin-fair", .1), CLAIM, 2, ABOUT | {"device": "cuda (X)"})["seeds"] == [2]
    assert R.merged(old, R.Result("coin-fair", .1), with_(metric="another"), 2, ABOUT)["seeds"] == [2]
    assert record([.5])["spread"] is None

@pytest.mark.parametrize("bad, said", [
    (dict(value=math.nan), "value is nan"), (dict(value=math.inf), "value is inf"), (dict(value=torch.tensor(math.nan)), "value is nan"), (dict(value="high"), "must be a number"),
    (dict(baselines={"full": -math.inf}), "baselines, full is -inf"), (dict(table=[{"x": math.nan}]), "table, x is nan"), (dict(table=[{"x": object()}]), "numbers and text"),
    (dict(roles={"thrower": "human"}), "played by 'human'"), (dict(roles={}), "who played thrower")])
def test_results_that_cannot_be_judged_are_refused(bad, said):
    good = dict(value=.5, roles={"thrower": "model"})
    with pytest.raises(ValueError, match=said) as e: R.merged(None, R.Result("coin-fair", **good | bad), with_(deciding=["thrower"]), 0, ABOUT)
    assert "\n" not in str(e.value)

def test_tensors_and_numpy_numbers_become_plain():
    rec = R.merged(None, R.Result("coin-fair", torch.tensor(.5), {"b": np.float32(.25)}, table=[{"n": np.int64(3), "xs": (1, np.float64(2))}]), CLAIM, 0, ABOUT)
    assert (rec["value"], rec["baselines"], rec["table"]) == (.5, {"b": .25}, [{"n": 3, "xs": [1, 2.0]}])

def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    code = textwrap.dedent("""
        import sys; from pathlib import Path; from llmwatch_course.foundations.results import write_whole
        for i in range(10**9): write_whole(Path(sys.argv[1]), bytes([48 + i % 10])*2_000_000)""")
    for pause in (.03, .08, .15):
        (tmp_path/"f").unlink(missing_ok=True)
        p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path/"f")], cwd=DATA.parent)
        while not (tmp_path/"f").exists(): time.sleep(.01)
        time.sleep(pause); p.send_signal(signal.SIGKILL); p.wait()
        data = (tmp_path/"f").read_bytes()
        assert len(data) == 2_000_000 and len(set(data)) == 1

def test_a_broken_result_file_is_named(tmp_path):
    (tmp_path/"coin-fair.json").write_text('{"claim": ')
    with pytest.raises(ValueError, match="is not a result file"): R.read("coin-fair", folder=tmp_path)

# ---- a run

@pytest.fixture
def coin(tmp_path, monkeypatch):
    "A course of one claim and one topic in an empty folder."
    quoted = {k: json.dumps(v) for k, v in vars(CLAIM).items() if k != "id"}
    (tmp_path/"data").mkdir(); (tmp_path/"data"/"claims.toml").write_text("[coin-fair]\n" + "\n".join(f"{k} = {v}" for k, v in quoted.items()))
    monkeypatch.chdir(tmp_path); monkeypatch.setenv("LLMWATCH_DATA_DIR", str(tmp_path/"data")); monkeypatch.delenv("LLMWATCH_SCALE", raising=False)
    module = types.ModuleType("llmwatch_course.coin.measure")
    module.Config = types.SimpleNamespace(smoke=lambda: 10, small=lambda: 400)
    module.run = lambda config, seed, device: [R.Result("coin-fair", sum(random.random() < .5 for _ in range(config))/config, {"unfair": 1.0})]
    for name, m in (("llmwatch_course.coin", types.ModuleType("coin")), (module.__name__, module)): monkeypatch.setitem(sys.modules, name, m)
    return module

def test_a_run_is_saved_judged_and_repeatable(coin, capsys):
    first = R.run_topic("coin", seeds=range(3), device="cpu")
    said = capsys.readouterr().out
    assert "seed 2, on cpu" in said and "coin-fair" in said and "reproduced" in said
    again = R.run_topic("coin", seeds=[1], device="cpu")
    assert again[0]["values"] == first[0]["values"] == R.read("coin-fair", folder=Path("work/results/small"))["values"]
    assert again[0]["command"] == "llmwatch run coin --scale small --seed 1 --device cpu" and set(first[0]) >= {
        "claim", "metric", "value", "values", "spread", "seeds", "baselines", "table", "scale", "device", "seconds", "versions", "commit", "command", "note"}
    row = R.ledger()[0]
    assert (row["verdict"], row["yours"].split(": ")[1]) == ("open", "reproduced")  # one's own run is a column of its own
    assert row["reason"] == "no result yet: llmwatch run coin --scale small --seeds 3 --out data/results/small" and row["seeds"] is None
    R.run_topic("coin", seeds=range(3), device="cpu", out=Path("data/results/small"))
    assert [r["verdict"] for r in R.ledger()] == ["reproduced", "open"] and R.ledger()[0]["seeds"] == [0, 1, 2]

def test_smoke_is_never_joined(coin):
    R.run_topic("coin", "smoke", range(3), "cpu")
    assert Path("work/results/smoke/coin-fair.json").exists() and all(r["yours"] == "–" and r["verdict"] == "open" for r in R.ledger())

def test_replacing_another_device_is_said(coin, capsys):
    R.run_topic("coin", device="cpu")
    path = Path("work/results/small/coin-fair.json")
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "abacus"'))
    R.run_topic("coin", seeds=[1], device="cpu")
    assert "another device, scale or metric and are replaced" in capsys.readouterr().out and R.read("coin-fair", folder=path.parent)["seeds"] == [1]

@pytest.mark.parametrize("args, said", [
    (dict(topic="coyn"), "unknown topic 'coyn'; did you mean 'coin'"), (dict(topic="coin", scale="smal"), "did you mean 'small'"), (dict(topic="coin", out="blocked/x"), "cannot be written to blocked/x .* --out")])
def test_bad_requests_are_one_sentence(coin, args, said):
    Path("blocked").write_text("a file, not a folder")
    with pytest.raises(ValueError, match=said): R.run_topic(**args)

def test_a_chapter_without_measurements_and_a_foreign_claim(coin, monkeypatch):
    coin.run = lambda *_: [R.Result("kv-exact", 1.0)]
    with pytest.raises(ValueError, match="'kv-exact', which is no claim of its"): R.run_topic("coin", device="cpu")
    monkeypatch.delitem(sys.modules, "llmwatch_course.coin.measure"); monkeypatch.delitem(sys.modules, "llmwatch_course.coin")
    with pytest.raises(ValueError, match="coin has nothing to measure yet"): R.run_topic("coin", device="cpu")

def test_finished_seeds_survive_an_interruption(coin):
    run = coin.run
    def stops(config, seed, device):
        if seed == 2: raise KeyboardInterrupt
        return run(config, seed, device)
    coin.run = stops
    with pytest.raises(KeyboardInterrupt): R.run_topic("coin", seeds=range(3), device="cpu")
    assert R.read("coin-fair", folder=Path("work/results/small"))["seeds"] == [0, 1]

def test_expect(coin, monkeypatch):
    R.expect("coin-fair")  # no result yet
    R.run_topic("coin", seeds=range(3), device="cpu", out=Path("data/results/small"))
    R.expect("coin-fair")
    with pytest.raises(AssertionError, match="relies on coin-fair being not reproduced"): R.expect("coin-fair", "not reproduced")
    monkeypatch.setenv("LLMWATCH_SCALE", "smoke"); R.expect("coin-fair", "not reproduced")

def test_commit_is_unknown_outside_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path)); assert R._commit() == "unknown"

# ---- tables

def test_tables_show_themselves():
    t = R.Table([{"a|b": 1.23456, "c": None}, {"a|b": "<i>", "d": 10**7}])
    assert str(t) == repr(t) == "a|b    c  d\n1.235  –  –\n<i>    –  10000000"
    assert "&lt;i&gt;" in t._repr_html_() and "<i>" not in t._repr_html_() and "| a\\|b | c | d |" in t._repr_markdown_()

def test_table_of_claims(coin):
    R.run_topic("coin", seeds=range(3), device="cpu", out=Path("data/results/small"))
    assert "(3 seeds)" in str(R.table("coin-fair")) and "unfair 1" in str(R.table(["coin-fair"], "small")) and "gpu" not in str(R.table("coin-fair", "small"))
    with pytest.raises(ValueError, match="did you mean 'coin-fair'"): R.table("coin-fare")

# ---- what is committed

@pytest.mark.parametrize("path", sorted(DATA.glob("results/*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_results_are_consistent(path):
    rec, claims = json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} in {path.name}")), R.load_claims(DATA/"claims.toml")
    claim, values = claims[path.stem], list(rec["values"].values())
    assert rec["claim"] == claim.id and rec["metric"] == claim.metric and rec["scale"] == path.parent.name and path.parent.name in claim.scales
    assert rec["seeds"] == sorted(map(int, rec["values"])) and all(0 <= s < 100 for s in rec["seeds"])  # 100-199 choose settings
    assert math.isclose(rec["value"], statistics.fmean(values), rel_tol=1e-12) and (rec["spread"] is None) == (len(values) == 1)
    assert set(claim.deciding) <= set(rec["roles"]) and rec["command"].startswith(f"llmwatch run {claim.topic} --scale {rec['scale']} --seed")
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", rec["commit"]) and (rec["device"] == "cpu") == (rec["scale"] == "small")
