"""What the library does is what the exercises of chapter 3 ask for."""
import time
from dataclasses import asdict
import pytest, torch
from llmwatch_course.agents import checks, flow, flow_grpo, memory, rewards
from llmwatch_course.agents.mistakes import WRONG
from llmwatch_course.agents.react import Limits
from llmwatch_course.agents.tools import ToolResult, Toolset, tool


def turned(data):
    "A memory of the exercises as one of the library's."
    turns = [memory.Turn(t["t"], memory.Plan(t["sub_goal"], t["tool"], t["args"]), ToolResult(t["ok"], t["text"]), t["stop"]) for t in data["turns"]]
    return memory.Memory(data["query"], tuple(turns))


def test_f_mem():
    def answer(data, plan, result, stop):
        made = memory.remember(turned(data), memory.Plan(**plan), ToolResult(**result), memory.Verdict(stop))
        return {"query": made.query, "turns": [{"t": t.t, "sub_goal": t.plan.sub_goal, "tool": t.plan.tool, "args": t.plan.args, "ok": t.result.ok, "text": t.result.text, "stop": t.stop} for t in made.turns]}
    checks.check_remember(answer)


@pytest.mark.parametrize("seed", range(25))
def test_rendering_keeps_to_the_budget(seed):
    "The library's rows look different; what has to stay and what goes first is the same."
    mine = turned(checks._history(seed))
    full, texts = len(mine.render(10**6)), [list(rows) for rows in memory.renderings(mine)][:max(1, len(mine.turns))]
    for most in range(len(mine.query), full + 1):
        text = mine.render(most)
        assert len(text) <= most
        if most < len("\n".join([f"Question: {mine.query}", *texts[-1]])): continue
        assert mine.turns[-1].result.text in text and all(t.result.text in text for t in mine.turns if not t.result.ok)
        gone = [t.result.text not in text for t in mine.turns if t.result.ok and len(t.result.text) > 30]
        assert gone == sorted(gone, reverse=True), "the oldest goes first"


def test_group_advantage():
    def answer(rewards, group_ids, traj_ids, scale=True, eps=1e-4):
        names, at = torch.unique(traj_ids, return_inverse=True)
        first = torch.stack([(traj_ids == k).nonzero()[0, 0] for k in names])
        a = flow_grpo.group_advantage(rewards[first], group_ids[first], scale="std" if scale else "none", eps=eps)
        return flow_grpo.spread(a, at, torch.zeros_like(at), torch.bincount(at))
    checks.check_group_advantage(answer)


def test_unfold():
    def answer(trajectories, advantages, credit="broadcast"):
        turns = [[flow_grpo.TurnSample(t["prompt"], t["action"], [0.]*len(t["action"]), truncated=t["truncated"]) for t in o] for o in trajectories]
        rows = flow_grpo.flow_rows(turns, advantages, credit, pad=-1)
        return {"prompt": rows.prompt_ids, "action": rows.action_ids, "mask": rows.mask, "adv": rows.adv, "traj": rows.traj_id, "turn": rows.turn}
    checks.check_unfold(answer)


def test_the_loss(): checks.check_loss(lambda *batch, **options: flow_grpo.flow_grpo_loss(*batch, **options)[0])


def test_the_loss_in_parts():
    "Oracle: padding, the order of rows and the split into micro-batches leave the gradient as it is."
    batch = checks._random_batch(3)
    _, whole = checks._by_numbers(*batch, .2, .3, .1)
    wanted = torch.tensor(whole, dtype=torch.float64)
    order = torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))
    columns = [o.detach() for o in checks._given(batch)]
    weights = flow_grpo.token_weights(columns[3], columns[5])
    found = torch.zeros_like(wanted)
    for part in order.split(3):
        logp, *rest = (o[part] for o in columns)
        logp.requires_grad_()
        loss, _ = flow_grpo.flow_grpo_loss(logp, *rest, beta=.1, weights=weights[part])
        found[part] = torch.autograd.grad(loss, logp)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


class Looks:
    "The check's planner as a planner of the library: rows with the results between marks."
    def __init__(self, planner, seed): self.planner, self.word, self.answer = planner, memory.fence_name(seed), None

    def plan(self, mine, tools):
        rows = [mine.query]
        for t in mine.turns: rows += [t.plan.tool, self.word, *(f"| {line}" for line in memory.harmless(t.result.text).splitlines()), self.word]
        plan = self.planner("\n".join(rows), self.word)
        if "answer" in plan: self.answer = plan["answer"]
        return memory.Plan("", "finish", {"text": plan["answer"]}) if "answer" in plan else memory.Plan("", plan["tool"], {"text": plan["text"]})


class Hurries:
    "An executor that gives a call no more time than the run has left."
    def __init__(self, end): self.end = end
    def execute(self, plan, tools): return tools.call(plan.tool, plan.args, self.end - time.monotonic())


def finish(text: str) -> str: return text


def test_run_flow_outlives_hostile_tools():
    runs = iter(range(1000))
    def answer(query, planner, tools, limits):
        seed = next(runs)
        looks = Looks(planner, seed)
        box = Toolset(*(tool(f, name=name, description=name, seconds=limits.call, most=limits.characters) for name, f in {**tools, "finish": finish}.items()))
        modules = flow.Modules(looks, Hurries(time.monotonic() + limits.total), flow.RuleVerifier(lambda mine: mine.turns[-1].plan.tool == "finish"), flow.LastValue())
        with box: made = flow.run_flow(query, modules, box, Limits(turns=limits.turns, seconds=limits.total, repeats=limits.repeats), seed)
        turns = [{"result": t.result.text, "error": t.result.error} for t in made.turns if t.plan.tool != "finish"]
        return {"answer": looks.answer, "stop": "answered" if made.stop_reason == "verified" else made.stop_reason, "turns": turns}
    checks.check_unbreakable(answer)


def test_orders_reach_a_loop_without_fences():
    "The undefended loop says what it was told each time, the defended ones never."
    orders = [name for name in checks._TRIALS if "orders" in name or "fence" in name]
    unfenced = next(f for f, sentence in WRONG["check_unbreakable"] if sentence.startswith("results are not fenced"))
    told = {f: sum(checks._trial(f, name)["answer"] == "666" for name in orders) for f in (unfenced, *checks.RIGHT["check_unbreakable"])}
    assert len(orders) == 4 and told.pop(unfenced) == 4 and set(told.values()) == {0}


def test_sound_scorer(): checks.check_sound24(rewards.puzzle24)


def test_the_hack_is_refused_by_sound_scorers_alone():
    numbers = (3, 3, 8, 8)
    assert rewards.sloppy24("6*4*1*1", numbers) and not any(f("6*4*1*1", list(numbers)) for f in checks.RIGHT["check_sound24"])


def test_limits_of_the_exercise_are_plain(): assert set(asdict(checks.Limits())) == {"turns", "call", "total", "characters", "repeats"}
