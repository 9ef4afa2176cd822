"Questions with a number: the loader, the scorer that evaluates nothing, and the loop around them."
import json, random
import pytest
from llmwatch_course.ace.adapt import Ace, evaluate, online
from llmwatch_course.ace.feedback import LEVELS, project
from llmwatch_course.ace.formula import PLAIN, Formula, as_number, formula_tasks
from llmwatch_course.ace.live import ChatCurator, ChatGenerator, ChatReflector, asking
from llmwatch_course.foundations.chat import Scripted

CONTEXT = 'Use formula {name} to answer the question. Formula: {name} = A / B, Explanation: A: a thing. Question:  "{question}". Answer:'


def file(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def entry(question="A is $5, B is $2. Find A / B.", target="2.5"): return {"context": CONTEXT.format(name="Ratio", question=question), "target": target}


@pytest.mark.parametrize("text", ["", " ", ".", "-", "+.", "e5", "1e", "1 2", "1.2.3", "0x10", "1_000", "nan", "NaN", "inf", "-Infinity", "1j", "10+5", "5%", "$5", "five", "１", "٣", "1e9999", "9" * 61, "__import__('os')", "[1]", "(1)", "True", "1\n2"])
def test_no_number(text): assert as_number(text) is None


def test_numbers_are_those_of_float():
    rng = random.Random(0)
    for _ in range(1000):
        x = rng.choice([rng.uniform(-1e6, 1e6), rng.gauss(0, 1) * 10 ** rng.randint(-20, 20), rng.randint(-9, 9)])
        for text in (repr(x), f"{x:.2f}", f"{x:e}", f" {x:,.3f}\n"): assert as_number(text) == float(text.replace(",", ""))
    assert as_number("5.") == 5 and as_number(".5") == 0.5 and as_number("+1E3") == 1000 and as_number("1e999") is None


def test_the_loader_keeps_the_question_and_drops_the_formula(tmp_path):
    path = file(tmp_path / "f.jsonl", entry(), "", entry("Question: with \u2028 and “quotes” or Answer: what?", "1,000"), entry(target="-3"))
    a, b, c = formula_tasks(path)
    assert a.request == f"A is $5, B is $2. Find A / B. {PLAIN}" and (a.id, b.id, c.id) == ("f-1", "f-3", "f-4") and a.gold == ("2.5",) and a.options == a.needs == a.calls == ()
    assert b.request.startswith("Question: with \u2028 and “quotes” or Answer: what?") and "Ratio = A / B" not in a.request
    assert "Ratio = A / B" in formula_tasks(path, formula=True)[0].request and asking(a).startswith("Task:\n| A is $5")


@pytest.mark.parametrize("bad", ["{", "[]", "3", '{"context": "x"}', '{"context": 3, "target": "1"}', '{"target": "1"}', entry(target="about 5"), entry(target=None), entry(question=""), {"context": "no question", "target": "1"}])
def test_a_bad_line_is_named(tmp_path, bad):
    with pytest.raises(ValueError, match="line 2 of") as e: formula_tasks(file(tmp_path / "f.jsonl", entry(), bad))
    assert "\n" not in str(e.value)


def test_the_world(tmp_path):
    task, = formula_tasks(file(tmp_path / "f.jsonl", entry()))
    for calls, passed, complains in ((("2.50",), True, False), ((" 2.5 ",), True, False), (("2.51",), False, False), (("2.5%",), False, True), ((), False, True), (("2.5", "2.5"), False, True), (("x" * 10**6,), False, True)):
        trace = Formula().run(task, calls)
        assert (trace.passed, bool(trace.errors)) == (passed, complains) and len(trace.errors) < 200 and "2.5'" not in trace.errors.replace("'2.5%'", "").replace("('2.5', '2.5')", "")
    assert {level: "2.5" in str(project(Formula().run(task, ["7"]), task, level)) for level in LEVELS} == {"label": True, "verdict": False, "execution": False, "none": False}


def test_every_question_stays_in_the_denominator(tmp_path):
    tasks = formula_tasks(file(tmp_path / "f.jsonl", *[entry()] * 4))
    said = iter(['{"calls": ["2.5"]}', "I don't know", '{"calls": ["ran"]}', '{"calls": ["2.50"]}'])
    learner = Ace(ChatGenerator(Scripted(lambda m: next(said))), ChatReflector(Scripted([])), ChatCurator(Scripted([])))
    assert evaluate(learner.frozen(), Formula(), tasks).mean() == 0.5


def test_the_loop_runs(tmp_path):
    tasks = formula_tasks(file(tmp_path / "f.jsonl", *[entry()] * 3))
    add = '{"operations": [{"type": "ADD", "section": "formulas", "content": "Divide A by B."}]}'
    def model(messages): return add if "keep a playbook" in messages[0]["content"] else '{"insights": []}' if "find out why" in messages[0]["content"] else '{"calls": ["2.5"]}' if "Divide" in messages[0]["content"] else "?"
    ace = Ace(*(role(Scripted(model)) for role in (ChatGenerator, ChatReflector, ChatCurator)))
    assert [step.passed for step in online(ace, Formula(), tasks).steps] == [False, True, True] and len(ace.playbook) == 1
