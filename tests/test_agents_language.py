"""The language planner: lines, sampling, rollouts, one update; the experiment with a decoder that knows nothing."""
import copy, random
from dataclasses import replace
import pytest
import torch
from llmwatch_course.agents.flow import DirectExecutor, LastValue, Limits, Modules, RuleVerifier, run_flow
from llmwatch_course.agents.flow_grpo import TurnSample, flow_rows, group_advantage
from llmwatch_course.agents.language_planner import LanguagePlanner, action_logps, letters, line_of, noisy, outcomes, parse, play, signatures, tally, update
from llmwatch_course.agents.language_training import Recipe, sft_on_format, train_language
from llmwatch_course.agents.memory import Plan
from llmwatch_course.agents.text_world import TextWorld, enough
from llmwatch_course.agents.tools import Toolset, tool
from llmwatch_course.foundations.decoder import Config, Decoder

WORLD, ABC = TextWorld(60), letters()


def planner(seed=0, **options):
    config = Config.tiny(channels=32, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=64, vocab=len(ABC), context=4096)
    return LanguagePlanner(Decoder(config).initialise(torch.Generator().manual_seed(seed)), ABC, **{"most": 8} | options)


@tool(isolated=False)
def add(a: int, b: float, note: str = "") -> float:
    "Add two numbers."
    return a + b


@pytest.mark.parametrize("line, args", [("add 3 4.5", {"a": 3, "b": 4.5}), ("add 3 four", {"a": 3, "b": "four"}), ("add 3", {"a": 3}), ("add", {}), ("add 3.5 1 2", {"a": "3.5", "b": "1 2"}),
                                        ("add 99999999999999 1", {"a": "99999999999999", "b": 1})])
def test_a_line_becomes_a_plan(line, args):
    tools = Toolset(add)
    found = parse(line, tools)
    assert (found.tool, found.args, found.raw) == ("add", args, line) and signatures(tools) == "Tools: add A B"
    assert tools.call(found.tool, found.args).ok == (line == "add 3 4.5")


@pytest.mark.parametrize("line", ["", "   ", "no such tool", "search", "{}", "add(1, 2)", "guess now", "\x00", "é" * 500, "search " + "x " * 5000])
def test_no_line_breaks_the_loop(line):
    tools = WORLD.tools(0)
    found = parse(line, tools)
    assert tools.call(found.tool, found.args).error in (None, "bad_args", "unknown_tool", "crash")


def test_lines_and_plans_go_both_ways():
    tools = WORLD.tools(0)
    for plan in (Plan("", "search", {"query": "manager of Carol Reed"}), Plan("", "calc", {"expression": "3 + 4"}), Plan("", "guess")):
        assert replace(parse(line_of(plan), tools), raw="") == plan


def test_letters_are_lossless():
    text = "wiki number of Carol Reed?\n| {\"a\": 1}"
    assert ABC.decode(ABC(text, add_special_tokens=False)["input_ids"]) == text and ABC.decode([ABC.eos_token_id, 5], skip_special_tokens=True) == ABC.decode([5])


def test_samples_carry_the_sampler_and_end_with_their_line():
    p, g = planner(temperature=0.7, most=40), torch.Generator().manual_seed(0)
    p.version = 5
    samples = p.act([p.encode(text) for text in ("a", "a longer prompt", "b") * 8], g)
    for s in samples:
        ends = [bool(p.ends[i]) for i in s.action_ids]
        assert not any(ends[:-1]) and ends[-1] == (not s.truncated) and len(s.logps) == len(s.action_ids) <= 40 and s.version == 5
    assert {s.truncated for s in samples} == {True, False}
    rows = flow_rows([[s] for s in samples], torch.zeros(len(samples)))
    assert torch.where(rows.mask, p.logps(rows) - rows.logp_old, 0.).abs().max() < 1e-4
    assert not rows.mask[torch.tensor([s.truncated for s in samples])].any()


def test_logps_ignore_padding_and_company():
    p, g = planner(), torch.Generator().manual_seed(1)
    def sample(n, a): return TurnSample(torch.randint(3, 90, (n,), generator=g).tolist(), torch.randint(3, 90, (a,), generator=g).tolist(), [0.] * a)
    samples = [sample(3, 7), sample(20, 2), sample(11, 5)]
    rows = flow_rows([[s] for s in samples], torch.zeros(3))
    together = action_logps(p.decoder, rows, 0.5)
    for i, s in enumerate(samples):
        tokens = torch.tensor([[*s.prompt_ids, *s.action_ids]])
        plain = (p.decoder(tokens)[0, len(s.prompt_ids) - 1:-1] / 0.5).log_softmax(-1).gather(1, torch.tensor(s.action_ids)[:, None])[:, 0]
        torch.testing.assert_close(together[i, :len(s.action_ids)], plain, atol=1e-5, rtol=1e-5)


def test_a_batch_plays_what_the_loop_plays():
    "Twice with other company: greedy, with the fences and dice of each query's own seed."
    p, queries = planner(temperature=0), WORLD.queries(5, 1)
    batch = play(p, WORLD, queries, range(5))
    modules = Modules(p, DirectExecutor(), RuleVerifier(enough), LastValue())
    for i, r in enumerate(batch):
        run = run_flow(r.query.text, modules, WORLD.tools(i), Limits(turns=3, memory=p.memory), seed=i)
        assert [(t.plan, t.result.text, t.stop) for t in run.turns] == [(t.plan, t.result.text, t.stop) for t in r.memory.turns] and len(r.samples) == len(run.turns)
    alone = play(p, WORLD, queries[3:4], [3])[0]
    assert alone.memory.digest() == batch[3].memory.digest()


@pytest.mark.parametrize("transcript", [False, True])
def test_the_writer_without_noise_solves_the_world(transcript):
    p, queries = planner(), WORLD.queries(20, 2)
    games = play(p, WORLD, queries, range(20), turns=40, transcript=transcript, write=noisy(WORLD, p, 0., random.Random(0)))
    assert sum(r.won for r in games) == 20
    for r in games:
        grows = all(list(b.prompt_ids[:len(a.prompt_ids) + len(a.action_ids)]) == [*a.prompt_ids, *a.action_ids] for a, b in zip(r.samples, r.samples[1:]))
        assert grows == (transcript or len(r.samples) == 1)
    numbers = tally(games, 2)
    assert numbers["success"] == 1 and numbers["zero-std fraction"] == 1 and numbers["calls of search"] > 0.1 and 0.2 < numbers["error rate"] < 0.7


def test_noise_makes_it_worse_but_not_useless():
    p, queries = planner(), [q for q in WORLD.queries(10, 3) for _ in range(4)]
    games = play(p, WORLD, queries, range(40), turns=5, write=noisy(WORLD, p, 0.35, random.Random(0)))
    won, group = outcomes(games, 4)
    assert 0.1 < won.mean() < 0.9 and group.bincount().tolist() == [4] * 10 and tally(games, 4)["zero-std fraction"] < 0.8


def test_parts_of_any_size_make_the_same_update():
    base = planner(temperature=0.7)
    games = play(base, WORLD, [q for q in WORLD.queries(2, 4) for _ in range(3)], range(6), torch.Generator().manual_seed(0), turns=2)
    taken = [[replace(s, truncated=False) for s in r.samples] for r in games]
    rows = flow_rows(taken, group_advantage(torch.tensor([1., 0, 0, 1, 1, 0]), torch.arange(6) // 3))
    def after(part, beta=0.1):
        p, reference = copy.deepcopy(base), planner(7, temperature=0.7)
        return p, update(p, rows, torch.optim.SGD(p.decoder.parameters(), 1.), reference, beta, part)
    (a, seen), (b, again), (c, _) = after(64), after(5), after(64, 0.)
    for p, q in zip(a.decoder.parameters(), b.decoder.parameters()): torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)
    assert seen["loss"] == pytest.approx(again["loss"], abs=1e-6) and seen["sampler-trainer gap"] < 1e-4 and a.version == 1
    assert any(not torch.allclose(p, q) for p, q in zip(a.decoder.parameters(), c.decoder.parameters()))


def test_format_tuning_learns_the_form():
    recipe = replace(Recipe.small(), format_steps=25, format_batch=8, format_lr=1e-2, turns=1)
    losses = sft_on_format(recipe.planner(), WORLD, recipe, 0)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


def test_the_experiment_runs_stops_and_resumes(tmp_path):
    recipe = Recipe.smoke()
    whole = train_language(replace(recipe, steps=2), 3)
    assert {"frozen", "losses", "format", "gate", "history", "flow", "seconds", "planner"} == set(whole) and len(whole["history"]) == 2
    assert {"success", "error rate", "zero-std fraction", "sampler-trainer gap", "norm"} <= set(whole["history"][0]) and whole["history"][0]["sampler-trainer gap"] < 1e-4
    train_language(recipe, 3, folder=tmp_path)
    resumed = train_language(replace(recipe, steps=2), 3, folder=tmp_path)
    for p, q in zip(whole["planner"].decoder.parameters(), resumed["planner"].decoder.parameters()): torch.testing.assert_close(p, q)
    closed = train_language(replace(recipe, gate=0.5), 3)
    assert "groups teach nothing" in closed["stopped"] and "flow" not in closed
