"Feedback levels: what each sees, and that nothing below `label` depends on the label."
from dataclasses import replace
import pytest
from llmwatch_course.ace.deltas import apply
from llmwatch_course.ace.desk import Desk
from llmwatch_course.ace.feedback import CANARY, LEVELS, Execution, Label, Nothing, Verdict, blind, leaks, project, with_canary
from llmwatch_course.ace.playbook import Playbook
from llmwatch_course.ace.roles import ProgramCurator, ProgramGenerator, ProgramReflector

desk = Desk(0)
tasks = desk.tasks(60, needs=(1, 2, 3))

def test_each_level_has_its_type_and_its_words():
    task = tasks[0]
    trace = desk.run(task, ["x"] * len(task.gold))
    assert [type(project(trace, task, level)) for level in LEVELS] == [Label, Verdict, Execution, Nothing]
    assert project(trace, task, "label") == Label(task.gold, False) and project(trace, task, "execution").text == trace.errors
    assert all(call in str(project(trace, task, "label")) for call in task.gold) and str(Execution("")) == "No error."
    with pytest.raises(ValueError, match="did you mean 'label'"): project(trace, task, "labels")

def test_below_the_level_of_labels_feedback_is_a_function_of_the_trace():
    for task in tasks:
        for calls in (task.gold, ["x"] * len(task.gold), ()):
            trace = desk.run(task, calls)
            for level in LEVELS[1:]: assert project(trace, task, level) == project(trace, with_canary(task), level)
            assert project(trace, replace(task, gold=()), "verdict") == Verdict(trace.passed), "the verdict is the world's, not a comparison with gold"

def test_a_blind_task_has_the_request_and_nothing_of_the_answer():
    for task in tasks:
        hidden = blind(with_canary(task))
        assert not leaks(repr(hidden)) and hidden.needs == () and (hidden.request, hidden.options, hidden.id) == (task.request, task.options, task.id)

@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("share", [0., 1.])
def test_no_prompt_of_any_role_holds_the_label_below_its_level(level, share):
    def run(spy):
        world, playbook, prompts, roles = Desk(1, share_named=share), Playbook(), [], (ProgramGenerator(), ProgramReflector(), ProgramCurator())
        for task in world.tasks(60, needs=(1, 2)):
            given, hint = spy(task), ""
            for _ in range(2):
                attempt = roles[0].act(blind(given), playbook, hint)
                feedback = project(world.run(task, attempt.calls), given, level)
                reflection = roles[1].reflect(blind(given), attempt, feedback, [bullet for id in attempt.cited if (bullet := playbook.get(id))])
                hint, prompts = reflection.text, [*prompts, roles[0].prompt, roles[1].prompt]
            playbook = apply(playbook, roles[2].curate(reflection, playbook, task.id).delta)[0]
            prompts.append(roles[2].prompt)
        return "\n".join(prompts), playbook
    spied, plain = run(with_canary), run(lambda task: task)
    assert leaks(spied[0]) == leaks(spied[1].canonical()) == (level == "label") and not leaks(plain[0])
    assert (spied == plain) == (level != "label")

def test_without_named_errors_the_gold_word_is_read_only_after_the_generator_said_it():
    world, playbook, roles = Desk(2, share_named=0.), Playbook(), (ProgramGenerator(), ProgramReflector(), ProgramCurator())
    for task in world.tasks(100):
        attempt = roles[0].act(blind(task), playbook)
        feedback = project(world.run(task, attempt.calls), task, "execution")
        roles[1].reflect(blind(task), attempt, feedback, [])
        assert (task.gold[0] in roles[1].prompt.replace(task.request, "")) == (attempt.calls == task.gold)

def test_the_canary_is_no_word_of_the_desk(): assert CANARY not in desk.calls and not leaks("\n".join(rule.sentence for rule in desk.rules))
