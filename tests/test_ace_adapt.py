"""The loop: it predicts before it learns, any learner fits in, and a journal lets it go on as if nothing had happened. All roles are programs."""
import itertools
import numpy as np
import pytest
from llmwatch_course.ace.adapt import Ace, Episode, Frozen, Past, evaluate, joined, learn_each, learn_together, merge, offline, online, past_of, propose, settled
from llmwatch_course.ace.baselines import Team, none, window
from llmwatch_course.ace.deltas import Delta, Op
from llmwatch_course.ace.desk import Desk, known
from llmwatch_course.ace.feedback import LEVELS, Execution, Label, Nothing, Verdict, leaks, with_canary
from llmwatch_course.ace.journal import Journal, recover
from llmwatch_course.ace.playbook import SECTIONS, Playbook, tokens
from llmwatch_course.ace.refine import Policy
from llmwatch_course.ace.roles import Attempt, ProgramCurator, ProgramGenerator, ProgramReflector, Reflection, Usage

DESK = Desk(0)
STREAM = DESK.tasks(40)


def ace(wrong_every=None, **options): return Ace(ProgramGenerator(), ProgramReflector(wrong_every), ProgramCurator(), **options)
def outcomes(history): return [step.passed for step in history.steps]
def tried(learner, tasks): return {i: Episode(t, a, DESK.run(t, a.calls)) for i, t in enumerate(tasks) for a in [learner.predict(t)]}


# predict, then learn

def test_each_task_is_predicted_before_it_is_learned():
    log = []
    class Spy:
        playbook = Playbook()
        def predict(self, task): log.append(("predict", task.id)); return ProgramGenerator().act(task, self.playbook)
        def learn(self, task, attempt, trace): log.append(("learn", task.id)); return Usage(1, 0, 2)
        def frozen(self, episodes=None): return self
    history = online(Spy(), DESK, STREAM[:4], 2)
    assert [what for what, _ in log] == ["predict", "predict", "learn", "learn"] * 2 and [id for what, id in log if what == "learn"] == [task.id for task in STREAM[:4]]
    assert history.steps[0].learning == Usage(1, 0, 2)


def test_learning_follows_the_closed_form():
    found = []
    for seed in range(24):
        desk, a = Desk(seed), ace()
        online(a, desk, desk.tasks(96))
        found.append(len({b.content for b in a.playbook.active()} & {rule.sentence for rule in desk.rules}) / len(desk.rules))
    assert abs(np.mean(found) - known(96)[-1]) < 3 * np.std(found) / np.sqrt(len(found)) + .005


@pytest.mark.parametrize("cut", [0, 1, 17, 39])
@pytest.mark.parametrize("size", [1, 7])
def test_a_prediction_knows_nothing_of_what_comes_after(cut, size):
    other = [*STREAM[:cut], *DESK.tasks(40, "train", seed=9)[cut:]]
    whole, changed = online(ace(), DESK, STREAM, size), online(ace(), DESK, other, size)
    assert outcomes(whole)[:cut] == outcomes(changed)[:cut] and [s.acting for s in whole.steps[:cut]] == [s.acting for s in changed.steps[:cut]]


def test_a_window_is_predicted_with_one_playbook():
    "The same request twice in one window: the second try cannot know the answer to the first."
    task = next(t for t, ok in zip(STREAM, outcomes(online(ace(), DESK, STREAM))) if not ok)
    assert outcomes(online(ace(), DESK, [task, task])) == [False, True] and outcomes(online(ace(), DESK, [task, task], window=2)) == [False, False]


def test_all_of_a_stream_counts():
    steps = online(ace(), DESK, STREAM, window=7).steps
    assert [s.task for s in steps] == [t.id for t in STREAM] and online(ace(), DESK, []).steps == []


def test_the_size_is_that_of_the_notes():
    a = ace()
    last = online(a, DESK, STREAM).steps[-1]
    assert (last.bullets, last.tokens) == (len(a.playbook), tokens(a.playbook.render())) and last.bullets > 5


def test_quarters_and_parts():
    history = online(ace(), DESK, STREAM)
    assert history.quarters() == [history.accuracy(slice(i, i + 10)) for i in range(0, 40, 10)] and history.accuracy() == np.mean(outcomes(history))


# batches

def test_a_batch_does_not_depend_on_who_was_first():
    episodes, digests = tried(ace(), STREAM[:5]), set()
    for order in itertools.islice(itertools.permutations(episodes), 0, 120, 7):
        a = ace(policy=Policy(budget=90))
        learn_together(a, {i: episodes[i] for i in order}, jobs=2)
        digests.add(a.playbook.digest())
    assert len(digests) == 1


def test_several_at_once_are_as_good_as_one_by_one():
    one, many = ace(), ace()
    learn_together(one, tried(one, STREAM[:8])); learn_together(many, tried(many, STREAM[:8]), jobs=4)
    assert one.playbook == many.playbook and one.past == many.past


@pytest.mark.parametrize("budget", [60, 120, 433])
def test_the_budget_holds_after_every_delta(tmp_path, budget):
    with Journal(tmp_path / "j.jsonl", budget=budget) as journal:
        a = ace(policy=Policy(budget=budget), journal=journal)
        sizes = [step.tokens for step in online(a, DESK, STREAM).steps]
        assert 30 < max(sizes) <= budget and all(tokens(journal.at(v).render()) <= budget for v in range(0, journal.playbook.version + 1, 5))


def test_exposures_are_counted_when_a_policy_asks():
    a, plain = ace(policy=Policy()), ace()
    for learner in (a, plain): online(learner, DESK, STREAM[:10])
    assert a.playbook.active()[0].exposures == 9                     # learned in the first episode, read in all others
    assert not any(bullet.exposures for bullet in plain.playbook.active())


# rounds

class Repeats:
    "A Generator that only does what a hint says."
    def __init__(self): self.hints = []
    def act(self, task, playbook, hint=""): self.hints.append(hint); return Attempt(tuple(hint.split()) or ("wrong",))


class Tells:
    def __init__(self, answers): self.answers, self.seen = iter(answers), []
    def reflect(self, task, attempt, feedback, cited): self.seen.append(feedback); return Reflection((("apis", f"insight {len(self.seen)}"),), {}, next(self.answers), Usage(1, 0, 1))


@pytest.mark.parametrize("rounds, tries", [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_rounds_end_when_the_task_is_done(rounds, tries):
    task, teller = STREAM[0], Tells(["maybe", " ".join(STREAM[0].gold), "fine"])
    a = Ace(Repeats(), teller, ProgramCurator(), rounds=rounds, world=DESK)
    attempt = a.predict(task)
    propose(a, 0, Episode(task, attempt, DESK.run(task, attempt.calls)))
    assert len(teller.seen) == tries and a.generator.hints == ["", "maybe", " ".join(task.gold)][:tries]


def test_more_rounds_learn_more_and_read_more():
    silent = Desk(1, share_named=0.)
    one, five = (online(ace(world=silent, rounds=n), silent, silent.tasks(96)) for n in (1, 5))
    assert five.accuracy() > one.accuracy() and sum(s.learning.read for s in five.steps) > sum(s.learning.read for s in one.steps)


def test_each_bullet_gets_one_vote_an_episode():
    whole = joined([Reflection((("s", "x"),), {"a": "harmful"}), Reflection((("s", "x"), ("s", "y")), {"a": "helpful", "b": "helpful"}, "last")], Usage(2))
    assert whole.tags == {"a": "harmful", "b": "helpful"} and whole.insights == (("s", "x"), ("s", "y")) and whole.text == "last" and whole.usage == Usage(2)


@pytest.mark.parametrize("feedback, done", [(Label(("x",), True), True), (Label(("x",), False), False), (Verdict(True), True), (Verdict(False), False), (Execution(""), True), (Execution("E"), False), (Nothing(), True)])
def test_nothing_to_correct_is_judged_from_feedback_alone(feedback, done): assert settled(feedback) is done


# labels

@pytest.mark.parametrize("level", LEVELS[1:])
def test_no_label_reaches_a_role(level):
    heard = []
    class Spy:
        def __init__(self, role): self.role = role
        def __getattr__(self, name):
            def call(*args, **kwargs): heard.append(repr(args) + repr(kwargs)); return getattr(self.role, name)(*args, **kwargs)
            return call
    a = Ace(Spy(ProgramGenerator()), Spy(ProgramReflector()), Spy(ProgramCurator()), level=level, rounds=2, world=DESK)
    online(a, DESK, [with_canary(t) for t in STREAM[:12]])
    assert len(heard) >= 36 and not any(leaks(text) for text in heard)


def test_with_labels_it_does():
    a = ace(level="label")
    online(a, DESK, [with_canary(t) for t in STREAM[:3]])
    assert leaks(a.playbook.render())


# journal

@pytest.mark.parametrize("options", [{}, {"policy": Policy(budget=150)}, {"rounds": 2, "world": DESK}, *({"level": level} for level in LEVELS)], ids=lambda o: str(next(iter(o.items()), ""))[:20])
@pytest.mark.parametrize("size", [1, 5])
def test_a_stopped_run_goes_on(tmp_path, options, size):
    whole = ace(**options)
    expected = online(whole, DESK, STREAM, size)
    for cut in (0, 1, 7, 23):
        with Journal(tmp_path / "j.jsonl") as journal: online(ace(journal=journal, **options), DESK, STREAM[:cut], size)
    with Journal(tmp_path / "j.jsonl") as journal: found = online(ace(journal=journal, **options), DESK, STREAM, size)
    assert outcomes(found) == outcomes(expected) and recover(tmp_path / "j.jsonl").digest() == whole.playbook.digest()
    assert [s.acting for s in found.steps[25:]] == [s.acting for s in expected.steps[25:]]


def test_killed_between_two_deltas_of_a_batch(tmp_path):
    class Stop(Exception): pass
    class Fragile(Journal):
        def append(self, delta):
            if self.playbook.version == 13: raise Stop
            return super().append(delta)
    with pytest.raises(Stop), Fragile(tmp_path / "j.jsonl") as journal: online(ace(journal=journal), DESK, STREAM, 5, learn_together)
    with Journal(tmp_path / "j.jsonl") as journal:
        a = ace(journal=journal)
        assert len(a.past) == 13 and len(online(a, DESK, STREAM, 5, learn_together).steps) == 40
        assert {n: p[:2] for n, p in past_of(journal).items()} == {n: p[:2] for n, p in a.past.items()} and len(a.past) == 40


def test_another_stream_is_refused(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        online(ace(journal=journal), DESK, STREAM[:3])
        with pytest.raises(ValueError, match="another stream: episode 0 was train-0-0, here it is test-0-0"): online(ace(journal=journal), DESK, DESK.tasks(5, "test"))


def test_earlier_playbooks_come_from_the_journal(tmp_path):
    a = ace()
    online(a, DESK, STREAM[:9])
    with pytest.raises(ValueError, match="without a journal the playbook after 4 of 9 episodes is gone"): a.frozen(4)
    with Journal(tmp_path / "j.jsonl") as journal:
        b = ace(journal=journal)
        online(b, DESK, STREAM[:4]); then = b.playbook
        online(b, DESK, STREAM[:9])
        assert b.frozen(4).playbook == then and b.frozen(9).playbook == b.playbook == a.playbook and b.frozen(0).playbook == Playbook()


# offline

def test_the_best_in_validation_is_kept_and_the_first_playbook_takes_part():
    learner = ace()
    online(learner, DESK, DESK.tasks(60))
    history = offline(ace(wrong_every=1, playbook=learner.playbook), DESK, STREAM, DESK.tasks(40, "validation"))
    assert history.best == learner.playbook != history.last and [n for n, _ in history.validation] == [0, 40] and history.validation[0][1] > history.validation[1][1]


@pytest.mark.parametrize("n, every, epochs, when", [(10, None, 3, [0, 10, 20, 30]), (10, 4, 1, [0, 4, 8, 10]), (3, 100, 1, [0, 3])])
def test_the_last_playbook_is_always_validated(n, every, epochs, when):
    history = offline(ace(), DESK, STREAM[:n], DESK.tasks(10, "validation"), epochs, every)
    assert [step for step, _ in history.validation] == when and len(history.steps) == n * epochs
    assert evaluate(Frozen(ProgramGenerator(), history.best), DESK, DESK.tasks(10, "validation")).mean() == max(a for _, a in history.validation)


def test_a_second_epoch_goes_on_too(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal: first = offline(ace(journal=journal), DESK, STREAM[:6], DESK.tasks(20, "validation"), 2)
    with Journal(tmp_path / "j.jsonl") as journal:
        again = offline(ace(journal=journal), DESK, STREAM[:6], DESK.tasks(20, "validation"), 2)
        assert journal.playbook.version == 12
    assert again.validation == first.validation and again.best == first.best and outcomes(again) == outcomes(first)


def test_evaluation_counts_every_task_and_teaches_nothing():
    a = ace()
    online(a, DESK, STREAM)
    before, exam = a.playbook, DESK.tasks(30, "test")
    assert evaluate(a.frozen(), DESK, exam).shape == (30,) and a.playbook is before and isinstance(a.frozen(), Frozen)
    assert a.frozen().learn(exam[0], a.predict(exam[0]), DESK.run(exam[0], ())) == Usage() and online(a.frozen(), DESK, STREAM).last is before


# any learner, any nonsense

def test_an_empty_start_keeps_its_name():
    named = Playbook(name="desk-agent", sections=("mistakes", *SECTIONS))
    assert ace(playbook=named).playbook is named


@pytest.mark.parametrize("learner", [none, lambda team: window(team, 5)])
def test_other_learners_fit_in(learner):
    team = Team(ProgramGenerator(), ProgramReflector(), ProgramCurator())
    assert len(online(learner(team), DESK, STREAM, 3).steps) == 40 and len(offline(learner(team), DESK, STREAM[:9], STREAM[:4], 1, 3).validation) == 4
    assert learn_each(learner(team), {}) == {}


@pytest.mark.parametrize("options, words", [({"level": "labels"}, "did you mean 'label'"), ({"rounds": 0}, "rounds is 0"), ({"rounds": 2}, "need the world")])
def test_bad_settings_get_a_sentence(options, words):
    with pytest.raises(ValueError, match=words): ace(**options)


def test_bad_calls_get_a_sentence():
    with pytest.raises(ValueError, match="window is 0"): online(ace(), DESK, STREAM, 0)
    with pytest.raises(ValueError, match="no validation tasks"): offline(ace(), DESK, STREAM, [])
    with pytest.raises(ValueError, match="multiple of the window"): offline(ace(), DESK, STREAM, STREAM, every=5, window=2)


def test_a_refused_operation_is_reported():
    a = ace()
    report, = merge(a, [Delta([Op("TAG", id="nobody-1", helpful=1), Op("ADD", section="apis", content="x")], source="episode 0: t passed (none)")])
    assert len(report.rejected) == 1 and len(report.accepted) == 1 and len(a.playbook) == 1 and a.past == {} and Past("t", True, 1).version == 1
