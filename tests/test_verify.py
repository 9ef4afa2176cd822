"""`make verify` tells a number that a fresh seed bears out from one that it does not, and says so in its exit status."""
import importlib.util, json
import pytest
from conftest import ROOT

RECORDED = {"coin-mean": (10., [9., 10., 11.], {}), "coin-time": (4., [3., 4., 5.], {"timing": True}), "coin-exact": (74., [74.]*3, {"kind": "derived"}),
            "coin-noise": (1e-14, [9e-15, 1e-14, 1.1e-14], {}), "coin-same": (0., [0.]*3, {})}


@pytest.fixture
def verify(tmp_path, monkeypatch):
    "The tool in a course of one topic with five recorded claims; `verify.fresh` is what a run gives."
    spec = importlib.util.spec_from_file_location("verify", ROOT/"tools/verify.py")
    spec.loader.exec_module(tool := importlib.util.module_from_spec(spec))
    entry = dict(topic="coin", newsletter="A coin.", paper="Bernoulli, 1713", kind="measured", scales=["small", "gpu"], metric="share of heads", accept=">= 0")
    toml = [f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in (entry | more).items()) for name, (_, _, more) in RECORDED.items()]
    (tmp_path/"claims.toml").write_text("\n\n".join(toml))
    (tmp_path/"results/small").mkdir(parents=True)
    for name, (mean, values, _) in RECORDED.items():
        record = dict(claim=name, value=mean, spread=abs(values[2] - values[0])/2, seeds=[0, 1, 2], note="")
        (tmp_path/f"results/small/{name}.json").write_text(json.dumps(record))
    monkeypatch.setenv("LLMWATCH_DATA_DIR", str(tmp_path))
    tool.fresh, tool.runs = {name: mean for name, (mean, _, _) in RECORDED.items()}, []
    def run(topic, scale, seeds, device, out):
        tool.runs.append((topic, scale, seeds, device))
        return [{"claim": name, "value": value} for name, value in tool.fresh.items()]
    tool.run_topic = run
    return tool


def test_what_agrees(verify, capsys):
    verify.fresh |= {"coin-mean": 12.9, "coin-time": 7.9, "coin-noise": 3e-10}
    assert verify.main(["coin"]) == 0 and verify.runs == [("coin", "small", [3], "cpu")]
    assert "all recorded numbers are borne out" in capsys.readouterr().out


@pytest.mark.parametrize("claim, value, said", [
    ("coin-mean", 13.1, "leaves mean ± 3 spreads"), ("coin-mean", 6.9, "leaves mean ± 3 spreads"), ("coin-time", 8.1, "a factor of 2"), ("coin-time", 1.9, "a factor of 2"),
    ("coin-exact", 74.001, "not exactly"), ("coin-noise", 1e-8, "leaves mean"), ("coin-same", 1., "leaves mean"), ("coin-mean", -1., ">= 0: not met")])
def test_what_does_not(verify, capsys, claim, value, said):
    verify.fresh[claim] = value
    assert verify.main(["coin", "7"]) == 1 and verify.runs[0][2] == [7]
    lines = capsys.readouterr().out.splitlines()
    assert said in next(o for o in lines if o.startswith(claim)) and f"not borne out: {claim} (small)" in lines[-1]


def test_a_claim_that_is_not_measured_any_more(verify, capsys):
    del verify.fresh["coin-same"]
    assert verify.main(["coin"]) == 1 and "was not measured" in capsys.readouterr().out


def test_results_of_a_gpu_are_for_a_gpu(verify, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path/"results/gpu").mkdir()
    (tmp_path/"results/gpu/coin-mean.json").write_text(json.dumps(dict(claim="coin-mean", value=1., spread=None, seeds=[3])))
    assert verify.main(["coin"]) == 0 and verify.runs == [("coin", "small", [4], "cpu")] and "scale gpu is left out" in capsys.readouterr().out


@pytest.mark.parametrize("words, said", [([], "which topic? known: coin"), (["coyn"], "did you mean 'coin'"), (["coin", "1"], "SEED=1 is not a fresh seed"), (["coin", "150"], "such as 3"), (["coin", "x"], "such as 3")])
def test_a_wrong_request_is_one_sentence(verify, capsys, words, said):
    assert verify.main(words) == 2 and verify.runs == []
    assert said in (err := capsys.readouterr().err) and len(err.splitlines()) == 1
