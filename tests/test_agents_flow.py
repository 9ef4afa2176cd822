"The loop of four parts: every way to end, every part that misbehaves, what chat models write and what they are asked."
import itertools, time
from collections import Counter
from dataclasses import replace
import pytest
from llmwatch_course.agents.flow import (
    STOP_REASONS, ChatGenerator, ChatPlanner, ChatVerifier, DirectExecutor, LastValue, Modules, RuleVerifier, read_plan, read_verdict, run_flow)
from llmwatch_course.agents.memory import Memory, Plan, Verdict, fenced, remember
from llmwatch_course.agents.react import Limits
from llmwatch_course.agents.tools import Toolset, ToolResult, tool
from llmwatch_course.foundations.chat import ChatError, Scripted

BOSS = {"Ana": "Bo", "Bo": "Cyd", "Cyd": "Dee", "Dee": "Ana"}
PLAN = '{"sub_goal": "find", "tool": "boss", "args": {"name": "Ana"}}'


@tool(isolated=False)
def boss(name: str) -> str:
    "Who is the boss?"
    return BOSS[name]


@tool(isolated=False)
def room(name: str) -> int:
    "In which room?"
    return sorted(BOSS).index(name)


@tool(isolated=False, most=10**6)
def book(page: int) -> str:
    "Read a page."
    return f"page {page} " + "words " * 200


FIRM = Toolset(boss, room, book)


class Part:
    "Does what it was told when made."
    def __init__(self, act): self.act = act
    def plan(self, memory, tools): return self.act(memory)
    def execute(self, plan, tools): return self.act(plan)
    def verify(self, memory): return self.act(memory)
    def write(self, memory): return self.act(memory)


def walk(memory): return Plan("", "boss", {"name": sorted(BOSS)[len(memory.turns) % 4]})
def boom(*_): raise ChatError("the server is gone")


def agent(plan=walk, execute=None, verify=lambda memory: Verdict(False), write=lambda memory: "done"):
    return Modules(Part(plan), Part(execute) if execute else DirectExecutor(), Part(verify), Part(write))


def flow(modules, tools=FIRM, seed=0, **limits): return run_flow("Who?", modules, tools, Limits(**{"repeats": 99} | limits), seed)


def test_every_stop_reason():
    runs = [flow(agent(verify=lambda memory: Verdict(True))), flow(agent()), flow(agent(), seconds=0), flow(agent(), repeats=2), flow(agent(boom))]
    assert tuple(run.stop_reason for run in runs) == STOP_REASONS
    assert [len(run.turns) for run in runs] == [1, 10, 1, 6 - 1, 0]  # the second round of four begins with a call that was there


def test_the_guard_asks_for_the_same_result_too():
    def same(memory): return Plan("", "boss", {"name": "Ana"})
    count = itertools.count()
    assert len(flow(agent(same), repeats=3).turns) == 3
    assert flow(agent(same, execute=lambda plan: ToolResult(True, str(next(count)))), repeats=3).stop_reason == "max_turns"
    assert flow(agent(same, verify=lambda memory: Verdict(len(memory.turns) == 3)), repeats=3).stop_reason == "verified"  # a stop counts first


def test_the_wall_clock():
    def slow(memory): time.sleep(0.03); return walk(memory)
    run = flow(agent(slow), seconds=0.1, turns=999)
    assert run.stop_reason == "wall_clock" and 2 <= len(run.turns) <= 5 and run.answer == "done"


@pytest.mark.parametrize("plan, error", [
    (Plan("", ""), "unknown_tool"), (Plan("", "rm"), "unknown_tool"), (Plan("", "boss"), "bad_args"), (Plan("", "boss", {"name": 3}), "bad_args"),
    (Plan("", "boss", {"name": "Zoe"}), "crash"), (Plan("", "boss", {"name": "Ana", "x": 1}), "bad_args")])
def test_a_bad_plan_costs_a_turn_and_says_what_there_is(plan, error):
    run = flow(agent(lambda memory: plan if not memory.turns else walk(memory)), turns=2)
    first = run.turns[0].result
    assert first.error == error and run.errors == Counter({error: 1}) and len(run.turns) == 2 and run.turns[1].result.ok
    if error == "unknown_tool": assert all(name in first.text for name in FIRM.names)


@pytest.mark.parametrize("broken", [boom, lambda *_: None, lambda *_: "boss", lambda *_: {"error": "no such model"}, lambda *_: 3])
def test_a_part_that_raises_or_returns_rubbish(broken):
    "Pitfall 11: an error that is returned like a text must not reach a parser."
    planner, executor, verifier = flow(agent(broken)), flow(agent(execute=broken), turns=2), flow(agent(verify=broken), turns=2)
    assert planner.stop_reason == "planner_error" and planner.why and planner.turns == () and planner.reward is None
    assert executor.errors == {"crash": 2} and executor.stop_reason == "max_turns"
    assert verifier.errors == {"no verdict": 2} and [t.stop for t in verifier.turns] == [None, None] and verifier.stop_reason == "max_turns"
    if not isinstance(broken(0) if broken is not boom else None, str):
        generator = flow(agent(write=broken), turns=1)
        assert generator.answer is None and generator.why and generator.stop_reason == "max_turns"


def test_the_reader_s_own_interrupt_gets_out():
    def stop(memory): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): flow(agent(stop))


def test_same_seed_same_run_and_nothing_stays():
    alone = [run_flow(q, agent(), FIRM, seed=3) for q in ("A", "B")]
    after = [run_flow(q, agent(), FIRM, seed=3) for q in ("B", "A", "B")]
    assert after[0].digest == after[2].digest == alone[1].digest != alone[0].digest == after[1].digest


def test_a_planner_can_t_rewrite_history():
    plan = Plan("", "boss", {"name": "Ana"})
    def sly(memory):
        if memory.turns: plan.args["name"] = "Bo"; memory.turns[0].plan.args.pop("x", None)
        return plan
    run = flow(agent(sly), turns=2)
    assert [t.plan.args["name"] for t in run.turns] == ["Ana", "Bo"]


def test_the_last_value():
    def made(*results):
        memory = Memory("?")
        for r in results: memory = remember(memory, Plan("", ""), r)
        return LastValue().write(memory)
    assert made() == "" and made(ToolResult(True, "a"), ToolResult(False, "b", error="crash")) == "a" and made(ToolResult(True, "a", 0)) == "0"


# ---- chat models as parts ----

def chatty(planner=(PLAN,), verifier=("Conclusion: STOP",), generator=("Bo",)):
    chats = [Scripted(list(s) if isinstance(s, tuple) else s) for s in (planner, verifier, generator)]
    return Modules(ChatPlanner(chats[0], 0.5, 60), DirectExecutor(), ChatVerifier(chats[1], 0., 40), ChatGenerator(chats[2], 0.2, 20)), chats


def test_each_part_asks_its_own_model_with_its_own_settings():
    "Pitfalls 7 and 10: a verifier's engine that is never called, settings that are dropped."
    modules, chats = chatty()
    run = flow(modules, seed=7)
    assert (run.answer, run.stop_reason, [len(c.requests) for c in chats]) == ("Bo", "verified", [1, 1, 1])
    for part, chat in zip(("planner", "verifier", "generator"), chats):
        card = run.engine_map[part]
        assert {k: chat.requests[0][k] for k in ("temperature", "max_tokens")} == {k: card[k] for k in ("temperature", "max_tokens")}
    assert [c.requests[0]["seed"] for c in chats] == [7000, 7001, 7001]
    assert [o["temperature"] for o in run.engine_map.values() if "temperature" in o] == [0.5, 0., 0.2] and run.engine_map["executor"] == {"class": "DirectExecutor"}


def test_a_prompt_keeps_its_budget_however_long_the_run():
    modules, (planner, verifier, _) = chatty(lambda messages: f'{{"tool": "book", "args": {{"page": {messages[1]["content"].count("Turn ")}}}}}', lambda messages: "Conclusion: CONTINUE")
    run = flow(modules, turns=15, memory=1500)
    sizes = [len(r["messages"][1]["content"]) for r in planner.requests + verifier.requests]
    assert len(run.turns) == 15 and max(sizes) <= 1500 and "characters left out" in planner.requests[-1]["messages"][1]["content"]
    assert all(fenced(turn.result.text, 0) in run_flow_prompt for turn, run_flow_prompt in [(run.turns[0], planner.requests[1]["messages"][1]["content"])])


def test_an_unclear_verdict_goes_on_and_counts():
    "Pitfall 5: the official fallback takes any `stop` in the text, `non-stop` included."
    modules, _ = chatty(lambda messages: PLAN, ("This is a non-stop service.", "I'd stop. Conclusion: maybe", "Conclusion: stop"))
    run = flow(modules)
    assert [t.stop for t in run.turns] == [None, None, True] and run.errors == {"no verdict": 2} and "non-stop" in run.turns[0].why


@pytest.mark.parametrize("text, stop", [
    ("Conclusion: STOP", True), ("**Conclusion**: CONTINUE.", False), ("conclusion - stop", True), ("Conclusion: STOP\nConclusion: CONTINUE", False), ("# Conclusion\nSTOP", True),
    ("", None), ("stop", None), ("Conclusion: non-stop", None), ("Conclusion: STOP or CONTINUE", None), ("Conclusion: do not stop", None), ("My Conclusion: STOP", None), ("Conclusion: STOPPED", None)])
def test_read_verdict(text, stop): assert read_verdict(text).stop is stop


@pytest.mark.parametrize("text, plan", [
    (PLAN, ("find", "boss", {"name": "Ana"})), (f"First {{}} then\n```json\n{PLAN}\n```", ("find", "boss", {"name": "Ana"})), (f'{{"tool": "room"}} no, {PLAN}', ("find", "boss", {"name": "Ana"})),
    ('{"Tool Name": "BOSS", "Sub-Goal": "x", "Arguments": {"name": "Bo"}}', ("x", "boss", {"name": "Bo"})), ('{"name": "boss", "arguments": {"name": "Bo"}}', ("", "boss", {"name": "Bo"})),
    ("Context: c\nSub-Goal: g\nTool Name: `Boss`\nArgs: {\"name\": \"Bo\"}", ("g", "boss", {"name": "Bo"})), ("- **Sub-Goal:** a\n- **Tool Name:** room\nSub-Goal: b\nTool name: boss", ("b", "boss", {})),
    ("Tool: Big-Book", ("", "big_book", {})), ("", ("", "", {})), ("I can't.", ("", "", {})), ('{"tool": "rm", "args": [1]}', ("", "rm", {})), ('{"tool": ["boss"]}', ("", "['boss']", {})), ('{"error": "busy"}', ("", "", {}))])
def test_read_plan(text, plan):
    read = read_plan(text, ("boss", "room", "big_book"))
    assert (read.sub_goal, read.tool, read.args) == plan and read.raw == text


def test_readers_are_quick_on_hostile_text():
    start = time.process_time()
    for text in ("{" * 10**5, '{"tool":' * 10**4, "Conclusion: " * 10**4, "tool" * 10**5, "*" * 3000 + "Sub-Goal", " \n" * 3000, '{"tool": "a", "args": ' + "9" * 5000 + "}"):
        read_plan(text, ("boss",)), read_verdict(text)
    assert time.process_time() - start < 3


def test_a_rule_verifier_never_says_maybe():
    assert RuleVerifier(lambda memory: []).verify(Memory("?")) == Verdict(False) and RuleVerifier(lambda memory: 3).verify(Memory("?")) == Verdict(True)


def test_the_loop_costs_little():
    "Without a model a turn costs less than a millisecond; best of several, since this machine may be busy."
    best = min(flow(agent()).seconds / 10 for _ in range(20))
    assert best < 1e-3


def test_a_hanging_tool_is_the_tools_matter():
    @tool(seconds=0.2)
    def hang(name: str) -> str:
        "Never comes back."
        while True: pass
    with Toolset(hang) as tools:
        run = run_flow("?", agent(lambda memory: Plan("", "hang", {"name": "x"})), tools, Limits(turns=2))
    assert run.errors == {"timeout": 2} and run.seconds < 8


def test_modules_can_be_exchanged_one_by_one():
    modules, _ = chatty()
    other = replace(modules, verifier=RuleVerifier(lambda memory: True))
    assert run_flow("?", other, FIRM).engine_map["verifier"] == {"class": "RuleVerifier"} and modules.engine_map()["verifier"]["class"] == "ChatVerifier"
