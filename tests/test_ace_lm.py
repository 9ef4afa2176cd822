"""The ranking Generator with a stand-in that copies the nearest bullet, its controls, and the statistics."""
import re
import numpy as np
import pytest
from llmwatch_course.ace import lm_generator
from llmwatch_course.ace.desk import Desk
from llmwatch_course.ace.feedback import CANARY, blind, with_canary
from llmwatch_course.ace.lm_generator import NAME, Logged, RankingGenerator, arms, course, gain, learner, measure_gain, oracle, prompt, right, shuffled, verbatim
from llmwatch_course.ace.playbook import Bullet, Playbook
from llmwatch_course.ace.roles import Usage
from llmwatch_course.foundations.language_model import NoModel
from tests.conftest import absent

DESK = Desk(5)


@pytest.fixture
def copier(monkeypatch):
    "A model that likes the call whose name stands nearest to the end of the prompt; else the first."
    seen = []
    def likelihoods(prompts, calls):
        seen.extend(prompts)
        return np.array([[max([m.start() for m in re.finditer(rf"\b{call}\b", text)], default=-1) - i / 100 for i, call in enumerate(calls)] for text in prompts], float)
    monkeypatch.setattr(lm_generator, "likelihoods", likelihoods)
    monkeypatch.setattr(lm_generator, "billed", lambda prompts, calls: Usage(sum(len(p.split()) for p in prompts), 0, len(calls)))
    return seen


def test_it_reads_k_bullets_the_nearest_last(copier):
    task = DESK.tasks(1, "test")[0]
    attempt = RankingGenerator(3).act(blind(task), oracle(DESK.rules))
    assert len(attempt.shown) == 3 and set(attempt.cited) <= set(attempt.shown) and len(copier[0].split("\n")) == 4
    assert attempt.cited == (attempt.shown[-1],) and "`" not in copier[0] and copier[0].endswith(" Call:")


def test_aligned_and_reworded_and_all(copier):
    tasks, book = DESK.tasks(48, "test"), oracle(DESK.rules)
    aligned = RankingGenerator(1, wording="request")
    assert all(DESK.run(t, aligned.act(blind(t), book).calls).passed for t in tasks), "one aligned bullet, copied"
    assert RankingGenerator(None).act(tasks[0], book).shown == tuple(bullet.id for bullet in book.active())
    with pytest.raises(ValueError, match="did you mean 'request'"): RankingGenerator(wording="requests")


def test_several_lines_and_a_hint(copier):
    task, book = DESK.tasks(1, needs=3)[0], oracle(DESK.rules)
    attempt = RankingGenerator(2, wording="request").act(blind(task), book)
    assert attempt.calls == task.gold and len(attempt.cited) == 3 and attempt.usage.generated == 3
    hinted = RankingGenerator(2).act(blind(task), book, hint="To do it all, call `maple`.\n")
    assert all("call maple.\n- " in text for text in copier[-3:]) and len(hinted.calls) == 3


def test_no_label_reaches_a_prompt(copier):
    tasks = [with_canary(t) for t in DESK.tasks(20)]
    ace, world = learner(RankingGenerator()), Logged(DESK)
    for task in tasks: attempt = ace.predict(task); ace.learn(task, attempt, world.run(task, attempt.calls))
    assert not any(CANARY in text for text in copier) and CANARY not in ace.playbook.canonical()


def test_a_batch_says_what_single_calls_say(copier):
    tasks, book, reader = DESK.tasks(10), oracle(DESK.rules), RankingGenerator()
    many = [DESK.calls[i] for i in reader.scores(tasks, book).argmax(1)]
    assert many == [reader.act(t, book).calls[0] for t in tasks]


def test_the_course_covers_what_the_exam_asks():
    for asked in (None, 5):
        stream, exam = course(DESK, asked, 0)
        assert len(exam) == (asked or 48) and len(stream) == 3 * len(exam)
        assert {t.needs[0] for t in stream} <= {t.needs[0] for t in exam} and len({t.needs[0] for t in exam}) == len(exam)
        assert not {t.id for t in stream} & {t.id for t in exam}


def test_shuffled_moves_every_call_and_nothing_else():
    book = oracle(DESK.rules)
    other = shuffled(book, 1)
    pairs = list(zip(book.active(), other.active()))
    assert all(a.id == b.id and a.content != b.content and a.content.split(", call")[0] == b.content.split(", call")[0] for a, b in pairs)
    assert sorted(NAME.findall(book.render())) == sorted(NAME.findall(other.render()))
    assert shuffled(Playbook(), 0).active() == [] and other.render() == shuffled(book, 1).render() != shuffled(book, 2).render()


def test_verbatim_keeps_each_message_once():
    book = verbatim(["a: no", "b: no", "a: no"])
    assert [bullet.content for bullet in book.active()] == ["a: no", "b: no"]


def test_right_among_all_and_among_four():
    tasks = DESK.tasks(30)
    scores = np.zeros((30, 48))
    for row, t in zip(scores, tasks): row[DESK.calls.index(t.gold[0])] = 1
    assert right(scores, tasks).all() and right(scores, tasks, 4).all() and not right(-scores, tasks, 4).any()
    noise = np.random.default_rng(0).random((30, 48))
    assert 0.05 < np.mean([right(noise, tasks, 4, s).mean() for s in range(200)]) < 0.5


def test_gain_has_its_interval():
    rng, inside = np.random.default_rng(1), 0
    for trial in range(100):
        after, before = rng.random(60) < 0.7, rng.random(60) < 0.4
        mean, low, high = gain(after, before, seed=trial, draws=400)
        assert low <= mean <= high
        inside += low <= 0.3 <= high
    assert inside >= 88
    assert gain(np.ones(5, bool), np.zeros(5, bool)) == (1, 1, 1)


def test_the_claim(copier):
    result = measure_gain(0, asked=12)
    beside = result.baselines
    assert result.claim == "ace-gain" and result.value == beside["found"] - beside["none"] and beside["interval, low"] <= result.value <= beside["interval, high"]
    assert beside["shuffled"] < beside["found"] <= 1 and result.roles["reflector"] == "program" and len(result.table) == len(arms(Playbook(), [], DESK.rules, 0))


def test_a_prompt_has_no_line_but_its_bullets():
    text = prompt("Ana says: hello (Mail).", ["one\n- two", "call `x`."])
    assert text.split("\n") == ["- one - two", "- call x.", "- Ana says: hello (Mail). Call:"]


def test_smollm2_obeys_the_nearest_bullet():
    try: lm_generator.smollm2()
    except (NoModel, ImportError): absent("SmolLM2")
    tasks, book = [DESK.task(f"t{i}", (i,), "Zoe") for i in (0, 9, 20)], oracle(DESK.rules)
    reader = RankingGenerator(1, wording="request")
    assert right(reader.scores(tasks, book), tasks).sum() >= 2
    assert right(reader.scores(tasks, shuffled(book, 0)), tasks).sum() == 0
    bill = reader.act(tasks[0], Playbook([Bullet("apis-0", "apis", DESK.rules[0].sentence)])).usage
    assert bill.generated == 1 and 20 < bill.read < 60
