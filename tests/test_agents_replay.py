"Runs on paper: cards, files, play-back, requests as promised, groups and judges."
import json, threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from llmwatch_course.agents.flow import ChatGenerator, ChatPlanner, ChatVerifier, DirectExecutor, LastValue, Modules, RuleVerifier, Trajectory, fingerprint, run_flow
from llmwatch_course.agents.memory import Memory, Plan, Turn, Verdict, remember
from llmwatch_course.agents.react import Limits
from llmwatch_course.agents.replay import RunCard, differences, examples, load, lost, play_back, recorded, rewarded, rollouts, run_card, save, steps, unkept, versions
from llmwatch_course.agents.tools import Toolset, ToolResult, tool
from llmwatch_course.foundations.chat import ChatError, Live, Scripted

PLAN = '{"sub_goal": "look", "tool": "number", "args": {"name": "Ana"}}'


@tool(isolated=False)
def number(name: str) -> int:
    "A person's number."
    return {"Ana": 3, "Bo": 7}[name]


def toolset(**change): return Toolset(replace(number, **change))


def chatty(says=PLAN, **sampling):
    return Modules(ChatPlanner(Scripted(lambda messages: says), **sampling), DirectExecutor(), RuleVerifier(lambda memory: len(memory.turns) == 2), LastValue())


@pytest.fixture
def runs(): return [run_flow(q, chatty(), toolset(), seed=i) for i, q in enumerate(("A?", "B?\n\u2028\"", "C \ud800?"))] + [run_flow("D?", chatty("no plan"), toolset(), Limits(repeats=2))]


def test_a_file_holds_all_of_a_run(runs, tmp_path):
    card = run_card(chatty(), toolset(), Limits(turns=4), 5)
    save(tmp_path/"r.jsonl", card, runs)
    assert load(tmp_path/"r.jsonl") == (card, runs)
    for run, memories in zip(runs, play_back(tmp_path/"r.jsonl"), strict=True):
        assert len(memories) == len(run.turns) + 1 and memories[0] == Memory(run.query, seed=run.seed) and memories[-1].turns == run.turns


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_run_comes_back(tmp_path, data):
    text, plain = st.text(max_size=9), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda x: st.lists(x, max_size=2), max_leaves=4)
    memory = Memory(data.draw(text), seed=data.draw(st.integers(0, 9)))
    for _ in range(data.draw(st.integers(0, 3))):
        plan = Plan(data.draw(text), data.draw(text), data.draw(st.dictionaries(text, plain, max_size=2)), data.draw(text))
        memory = remember(memory, plan, ToolResult(data.draw(st.booleans()), data.draw(text), data.draw(plain), data.draw(st.sampled_from([None, "crash"]))), Verdict(data.draw(st.sampled_from([True, False, None])), data.draw(text)))
    answer = data.draw(st.none() | text)
    run = Trajectory(memory.query, memory.turns, answer, "max_turns", {}, 0.5, fingerprint(memory, answer, "max_turns"), 1.0, "", memory.seed)
    save(tmp_path/"r.jsonl", run_card(chatty(), toolset()), [run, run])
    assert load(tmp_path/"r.jsonl")[1] == [run, run] and [m[-1].digest() for m in play_back(tmp_path/"r.jsonl")] == [memory.digest()] * 2


def test_edits_are_found(runs, tmp_path):
    save(tmp_path/"r.jsonl", run_card(chatty(), toolset()), runs)
    text = (tmp_path/"r.jsonl").read_text()
    for old, new in (('"text": "3"', '"text": "4"'), ('"answer": "3"', '"answer": "4"'), ('"verified"', '"max_turns"'), ('"stop": false', '"stop": true'), ('"query": "A?"', '"query": "X?"'), ('"name": "Ana"', '"name": "Bo"')):
        assert old in text
        (tmp_path/"e.jsonl").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match="run 0 .* was edited"): list(play_back(tmp_path/"e.jsonl"))
    (tmp_path/"e.jsonl").write_text(text.replace('"seconds": ', '"seconds": 1'))  # time is no part of what happened
    assert len(list(play_back(tmp_path/"e.jsonl"))) == len(runs)
    for line, why in (("{}", "line 2"), ("[]", "line 2"), ("not json", "line 2"), ('{"end": {}}', "line 2"), ('{"turn": {"t": 1}}', "line 2")):
        (tmp_path/"e.jsonl").write_text(text.split("\n")[0] + "\n" + line + "\n")
        with pytest.raises(ValueError, match=why): load(tmp_path/"e.jsonl")
    (tmp_path/"e.jsonl").write_text("")
    with pytest.raises(ValueError, match="no run card"): load(tmp_path/"e.jsonl")


def test_a_run_that_was_cut_short_is_left_out(runs, tmp_path):
    save(tmp_path/"r.jsonl", run_card(chatty(), toolset()), runs)
    lines = (tmp_path/"r.jsonl").read_text().splitlines()
    (tmp_path/"cut.jsonl").write_text("\n".join(lines[:-2]))
    assert load(tmp_path/"cut.jsonl")[1] == runs[:-1]


def test_the_card_sees_every_change():
    base = run_card(chatty(temperature=0.7), toolset(), Limits(), 0)
    assert differences(base, run_card(chatty(temperature=0.7), toolset(), Limits(), 0)) == [] and base.trained == ("planner",)
    others = {"temperature": run_card(chatty(temperature=0.5), toolset()), "max_tokens": run_card(chatty(temperature=0.7, max_tokens=9), toolset()), "tools number": run_card(chatty(temperature=0.7), toolset(seconds=9.)),
              "limits turns": run_card(chatty(temperature=0.7), toolset(), Limits(turns=3)), "seed": run_card(chatty(temperature=0.7), toolset(), seed=1),
              "verifier class": run_card(replace(chatty(temperature=0.7), verifier=ChatVerifier(Scripted([]))), toolset()), "torch": replace(base, versions=base.versions | {"torch": "0"})}
    for what, card in others.items(): assert any(what in line for line in differences(base, card)), what
    assert {"python", "llmwatch_course"} <= versions().keys() and isinstance(base, RunCard)


def test_a_recorded_run_plays_again_with_one_part_exchanged(runs):
    for run in runs[:3]: assert run_flow(run.query, recorded(run), Toolset(), seed=run.seed).digest == run.digest
    early = run_flow("A?", replace(recorded(runs[0]), verifier=RuleVerifier(lambda memory: True)), Toolset())
    late = run_flow("A?", replace(recorded(runs[0]), verifier=RuleVerifier(lambda memory: False)), Toolset())
    assert (early.stop_reason, len(early.turns)) == ("verified", 1) and late.stop_reason == "planner_error" and len(late.turns) == 2
    asked = Scripted(["seven"])
    assert run_flow("A?", replace(recorded(runs[0]), generator=ChatGenerator(asked)), Toolset()).answer == "seven" and "Turn 2" in asked.requests[0]["messages"][1]["content"]


def test_only_the_planner_s_words_are_examples():
    "Pitfall 8: a tool or a verifier on the same engine adds no training rows."
    chat = Scripted(lambda messages: PLAN + "\nConclusion: CONTINUE" if messages[0]["content"].startswith("Plan") else "Conclusion: CONTINUE")
    @tool(isolated=False, name="number")
    def asking(name: str) -> str:
        "A tool that asks the planner's own model."
        return chat.complete([{"role": "user", "content": name}]).text
    run = run_flow("A?", Modules(ChatPlanner(chat), DirectExecutor(), ChatVerifier(chat), ChatGenerator(chat)), Toolset(asking), Limits(turns=2))
    rows = examples(run)
    assert len(chat.requests) == 7 and len(rows) == len(run.turns) == 2
    assert [action for _, action in rows] == [PLAN + "\nConclusion: CONTINUE"] * 2 and [len(memory.turns) for memory, _ in rows] == [0, 1]
    assert rows[1][0].render() == chat.requests[3]["messages"][1]["content"]  # what the planner read in its second turn


@pytest.fixture
def server(monkeypatch):
    "A chat server that writes down the bodies that arrive."
    bodies = []
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": PLAN}, "finish_reason": "stop"}], "model": "tiny"}).encode()
            self.send_response(200); self.send_header("content-type", "application/json"); self.send_header("content-length", str(len(answer))); self.end_headers()
            self.wfile.write(answer)
        def log_message(self, *args): pass
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("LLMWATCH_BASE_URL", f"http://127.0.0.1:{http.server_port}/v1"); monkeypatch.setenv("LLMWATCH_CHAT_MODEL", "tiny")
    yield bodies
    http.shutdown(); http.server_close()


def test_requests_that_arrive_equal_the_card(server):
    "Pitfall 10, over a real socket: temperature and length reach the server; a client that drops one is found."
    pytest.importorskip("openai")
    modules = replace(chatty(), planner=ChatPlanner(Live(), temperature=0.7, max_tokens=33))
    run_flow("A?", modules, toolset())
    card = run_card(modules, toolset())
    assert len(server) == 2 and unkept(card, "planner", server) == [] and {b["model"] for b in server} == {card.engine_map["planner"]["model"]}
    forgotten = [{k: v for k, v in b.items() if k != "temperature"} for b in server]
    assert unkept(card, "planner", forgotten) == [f"request {i}: temperature is missing, 0.7 on the card" for i in (0, 1)]


# ---- groups and judges ----

def test_tries_belong_to_a_run_not_to_its_query():
    "Pitfall 9: with tries counted by query, a run that fails twice would use up those of the others."
    fails = {0: 2, 3: 1, 5: 9}  # run: how often its server is down
    failed = Counter()
    def says(seed):
        failed[seed] += 1
        if failed[seed] <= fails.get(seed, 0): raise ChatError("server gone")
        return PLAN
    class Server:
        model = "tiny"
        def complete(self, messages, *, seed, **options): return Scripted([says(seed // 1000)]).complete(messages)
    parts = replace(chatty(), planner=ChatPlanner(Server()), verifier=RuleVerifier(lambda memory: True))
    group = rollouts("A?", parts, toolset(), n=6, tries=3)
    assert [lost(run) for run in group] == [False] * 5 + [True] and "server gone" in group[5].why and [run.seed for run in group] == list(range(6))


def made(answer, reason="verified"): return Trajectory("q", (), answer, reason, {}, 0., "")


def test_a_failing_judge_drops_the_group_and_rewards_nobody():
    asked = []
    def judge(*, answer, truth):
        asked.append((answer, truth))
        if answer == "odd": raise ValueError("can't read the judgement")
        if answer == "late" and asked.count((answer, truth)) < 2: raise TimeoutError
        return answer == truth
    groups = [[made("a"), made("b")], [made("a"), made("odd")], [made("late"), made("a")], [made("a"), made(None)], [made("a"), made("a"), made("a", "planner_error")]]
    kept, dropped = rewarded(groups, judge, ["a", "a", "late", "a", "a"])
    assert [[r.reward for r in group] for group in kept] == [[1, 0], [1, 0], [1, 1]]
    assert dropped == {"runs": 2, "groups: judge failed": 1, "groups: too few runs": 1} and all(r.reward is None for group in groups for r in group)
    with pytest.raises(ValueError): rewarded(groups, judge, ["a"])


def test_a_judge_can_t_be_asked_the_wrong_way_round():
    "Pitfall 6: both arguments are texts; by name they can't change places."
    seen = []
    def judge(*, answer, truth): seen.append((answer, truth)); return 1.
    rewarded([[made("mine"), made("mine")]], judge, ["true"])
    assert seen == [("mine", "true")] * 2
    def careless(prediction, gold): return 1.
    kept, dropped = rewarded([[made("x"), made("y")]], careless, ["x"])
    assert kept == [] and dropped["groups: judge failed"] == 1


@pytest.mark.parametrize("verdict", [None, "yes", [], float("nan")])
def test_a_judge_that_returns_rubbish_has_failed(verdict):
    kept, dropped = rewarded([[made("x"), made("y")]], lambda *, answer, truth: verdict, ["x"])
    assert kept == [] and dropped["groups: judge failed"] == 1


def test_steps_of_a_run(runs):
    memories = list(steps(runs[0]))
    assert [len(m.turns) for m in memories] == [0, 1, 2] and all(isinstance(t, Turn) for t in memories[-1].turns)
