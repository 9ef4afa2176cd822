"""Checks say OK, or NOT YET with the right sentence; every chapter's checks have teeth."""
import importlib, types
from pathlib import Path
import numpy as np
import pytest, torch
import llmwatch_course
from llmwatch_course.foundations.checking import NotYet, check, checking, observe, recognised, same, verify_checks

PACKAGE = Path(llmwatch_course.__file__).parent
CHAPTERS = sorted(p.parent.name for p in PACKAGE.glob("*/checks.py"))

@pytest.mark.parametrize("chapter", CHAPTERS)
def test_checks_of_each_chapter(chapter): assert verify_checks(importlib.import_module(f"llmwatch_course.{chapter}.checks")) >= 5

def test_the_three_lines(capsys):
    with checking("1. thing"): pass
    assert capsys.readouterr().out == "OK  1. thing\n"
    for error, why in [(NotImplementedError("x"), "nothing here yet"), (AssertionError(), "not the expected result"),
                       (AssertionError("two\nlines"), "two lines"), (KeyError("k"), "stopped with KeyError: 'k'")]:
        with pytest.raises(NotYet) as e, checking("1. thing", "look there"): raise error
        assert e.value._render_traceback_() == [f"NOT YET  1. thing: {why}", "   hint  look there"] and e.value.__cause__ is None

def test_what_is_not_an_answer_passes_through():
    with pytest.raises(KeyboardInterrupt), checking("1. thing"): raise KeyboardInterrupt

t, nan = torch.tensor, float("nan")
@pytest.mark.parametrize("a, b, alike", [
    (t([1., nan]), t([1. + 1e-7, nan]), True), (t([1.]), t([1.1]), False), (t([1.]), t([1.], dtype=torch.float64), False), (t([1.]), t([[1.]]), False),
    (t([1, 2]), t([1, 2]), True), (t([True]), t([1]), False), (np.ones(2), np.ones(2), True), (np.ones(2), torch.ones(2), False),
    (t([1.], requires_grad=True), t([1.]), True), (t([float("inf")]), t([float("inf")]), True),
    ([1, (2, nan)], (1, [2, nan]), True), ([1], [1, 2], False), ([1], 1, False), ({"a": t([1.])}, {"a": t([1.])}, True), ({"a": 1}, {"b": 1}, False),
    (0.1 + 0.2, 0.3, True), (1, 1.0, True), (np.float64(1), 1.0, True), (1, True, False), (True, True, True), (np.True_, True, True), (nan, 1.0, False), (None, None, True), (None, 0, False),
    ("a", "a", True), ("a", "b", False), ({1, 2}, {2, 1}, True), (1.0, "1.0", False),
    (IndexError("index 5 of 'a'"), IndexError("index 7 of 'b'"), True), (IndexError("x"), KeyError("x"), False), (ValueError("long"), ValueError("short"), False)])
def test_same(a, b, alike): assert same(a, b) is alike and same(b, a) is alike

def test_observing_is_silent_and_never_raises(capsys):
    assert observe(lambda f: f(), lambda: print("noise") or 3) == 3 and capsys.readouterr().out == ""
    assert isinstance(observe(lambda f: f(), lambda: 1/0), ZeroDivisionError)
    assert recognised(None, lambda f: f, []) == ""

def chapter(judge=lambda xs: None, wrong=None, right=None):
    "A checks module for a `newest(xs, n)` exercise, with one thing changed."
    def kept(newest): return [newest([0, 1, 2, 3], 2), newest([0], 2)]
    def check_newest(newest): assert (judge(newest) or kept(newest)) == [[2, 3], [0]], "after four items the newest two remain"
    global WRONG  # where a check looks: the table beside it
    names = types.ModuleType("chapter")
    names.WRONG = WRONG = {"check_newest": wrong or [(lambda xs, n: xs[:n], "the oldest; slice from the end"), (lambda xs, n: xs, "nothing is thrown away"),
                                            (lambda xs, n: xs[-n:][::-1], "keep the order of arrival"), (lambda xs, n: xs[n + 9], "an index is not a slice")]}
    names.RIGHT = {"check_newest": right or [lambda xs, n: xs[-n:], lambda xs, n: list(reversed(list(reversed(xs))[:n]))]}
    names.check_newest = check("1. newest", "from the end", kept)(check_newest)
    return names

def test_a_good_chapter_verifies(): assert verify_checks(chapter()) == 6 == verify_checks(vars(chapter()))

def test_the_mistake_is_named_in_whatever_style_it_is_written():
    def oldest(xs, n):
        print("debugging")
        return tuple(x for i, x in enumerate(xs) if i < n)
    def unforeseen(xs, n): return [7]
    def crash(xs, n): return xs[40]
    for answer, why in [(oldest, "the oldest; slice from the end"), (unforeseen, "after four items"), (crash, "an index is not a slice")]:
        with pytest.raises(NotYet, match=why): chapter().check_newest(answer)

@pytest.mark.parametrize("change, said", [
    (dict(judge=lambda newest: [[2, 3], [0]]), "lets the wrong answer"),
    (dict(wrong=[(lambda xs, n: xs, "one"), (lambda xs, n: xs[:n], "two")]), "at least three"),
    (dict(wrong=[(lambda xs, n: xs, "one"), (lambda xs, n: [*xs], "two"), (lambda xs, n: xs[:n], "three")]), "refuses 'two' but says"),
    (dict(right=[lambda xs, n: xs[-n:]]), "two right answers"),
    (dict(right=[lambda xs, n: xs[-n:], lambda xs, n: xs]), "refuses right answer 1")])
def test_a_check_without_teeth_is_found(change, said):
    with pytest.raises(AssertionError, match=said): verify_checks(chapter(**change))

def test_a_check_nobody_listed_is_found():
    names = chapter(); names.check_other = names.check_newest
    with pytest.raises(AssertionError, match="check_other"): verify_checks(names)
