"""Exact checkers: against a solver of their own, under hostile answers, and what a scorer with a hole teaches."""
import ast
import itertools
import random
import time
import tracemalloc
import warnings
from fractions import Fraction
import numpy as np
import pytest
from llmwatch_course.agents.rewards import HONEST, HOSTILE, TEMPLATES, arithmetic, climb, countdown, exact, fill, number, puzzle24, puzzles, sloppy24, solve24

JUDGES = {"exact": lambda a: exact(a, "24 people"), "number": lambda a: number(a, 7), "puzzle24": lambda a: puzzle24(a, [7, 5, 3, 1]),
          "countdown": lambda a: countdown(a, [7, 5, 3, 1], 12), "sloppy24, but for the hole": lambda a: sloppy24(a, [7, 5, 3, 1]) and a != "6*4*1*1"}
WORSE = HOSTILE | {
    "walrus": "(x:=24)", "f-string": "f'{24}'", "comprehension": "[24 for _ in ' ']", "await": "await 24", "starred": "*24", "ternary": "24 if 1 else 0", "boolean": "24 or 1",
    "tuple": "24,", "call of a number": "24(1)", "subscript": "24[0]", "bit shift": "3<<3", "matrix": "6@4", "power": "2**4+8", "float": "24.0", "comma": "2,4", "tab": "2\t4", "nbsp": "2\u00a04",
    "many plus": "+" * 199, "operators only": "*/*/", "deep division": "1/(" * 60 + "1" + ")" * 60, "long chain": "1-" * 99 + "1", "surrogate": "\ud800", "rtl": "\u202e42",
    "superscript": "2⁴", "fraction sign": "½", "roman": "ⅩⅩⅣ", "thai": "๒๔", "minus sign": "−24", "times sign": "6×4×1×1", "bytes": b"24", "a list": [24], "an int": 24, "huge zeros": "0" * 10**6}


@pytest.mark.parametrize("judge", JUDGES)
def test_hostile_answers_are_refused_quickly(judge):
    with warnings.catch_warnings():
        warnings.simplefilter("error")                       # not even a SyntaxWarning gets out
        for name, answer in WORSE.items():
            best = min(timed(JUDGES[judge], answer, name) for _ in range(2))
            assert best < 0.05, (name, best)


def timed(judge, answer, name):
    start = time.perf_counter()
    assert judge(answer) is False, name
    return time.perf_counter() - start


def test_a_megabyte_costs_no_memory():
    tracemalloc.start()
    for answer in ("1+" * 500_000 + "1", "(" * 10_000 + "1" + ")" * 10_000, "9" * 10**6): assert not puzzle24(answer, [1, 1, 4, 6])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_model_text_is_never_run(monkeypatch):
    def forbidden(*_, **__): raise AssertionError("evaluated")
    for name in ("eval", "exec", "__import__"): monkeypatch.setattr(f"builtins.{name}", forbidden)
    assert puzzle24("(1+5)*(7-3)", [7, 5, 3, 1]) and not puzzle24("print(24)", [24])


def random_expression(rng, numbers):
    "An expression over all these numbers, with its value by hand; None instead of a division by zero."
    if len(numbers) == 1: return str(numbers[0]), Fraction(numbers[0])
    cut, sign = rng.randrange(1, len(numbers)), rng.choice("+-*/")
    (left, a), (right, b) = random_expression(rng, numbers[:cut]), random_expression(rng, numbers[cut:])
    text = f"({left}){sign}({right})"
    if a is None or b is None or sign == "/" and b == 0: return text, None
    return text, {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[sign]


def test_arithmetic_is_exact():
    rng = random.Random(0)
    for _ in range(500):
        numbers = [rng.randint(0, 12) for _ in range(rng.randint(1, 6))]
        text, value = random_expression(rng, numbers)
        if value is None:
            with pytest.raises(ValueError): arithmetic(text)
        else: assert arithmetic(text) == (value, numbers)


def test_solver_and_checker_agree():
    rng = random.Random(1)
    for _ in range(25):
        numbers = [rng.randint(1, 10) for _ in range(4)]
        if text := solve24(numbers):
            assert puzzle24(text, numbers) and puzzle24(f" {text} ", rng.sample(numbers, 4)) and countdown(text, [*numbers, 9], 24)
            assert not puzzle24(text, [*numbers, 1]) and not puzzle24(text, numbers[:3]) and not puzzle24(f"{text}+1-1", numbers)
    assert solve24([1, 1, 1, 1]) is None and puzzle24(solve24([3, 3, 8, 8]), [8, 3, 8, 3]) and solve24([5, 5, 5, 1])


def test_numbers_are_a_multiset():
    assert puzzle24("6*4*1*1", [1, 6, 1, 4]) and not puzzle24("6*4*1*1", [1, 6, 2, 4]) and not puzzle24("6*4", [6, 4, 1, 1])
    assert countdown("6*4", [6, 4, 1, 1], 24) and not countdown("6*4*1*1*1", [6, 4, 1, 1], 24) and not countdown("6*6-12", [6, 12], 24)


@pytest.mark.parametrize("answer, ok", [("7", True), (" 7 ", True), ("7.", True), ("7.0", True), ("+7", True), ("14/2", True), ("007", True), ("7.000", True), ("-7", False), ("7.01", False),
                                        ("17", False), ("7 8", False), ("7/0", False), ("7/00", False), ("", False), (".", False), ("7e0", False), ("seven", False), ("７", False), ("0x7", False), ("7\n8", False)])
def test_number(answer, ok): assert number(answer, 7) is ok


def test_number_is_exact_where_floats_are_not():
    assert number("0.1", Fraction(1, 10)) and not number("0.1000000000000000055511151231257827", Fraction(1, 10))
    assert number("9007199254740993", 2**53 + 1) and not number("9007199254740992", 2**53 + 1)


def test_exact():
    assert exact(" Carol  REED. ", "Carol Reed") and exact("Straße", "STRASSE") and not exact("Carol Reed Smith", "Carol Reed") and not exact("Carol Stone", "Carol Reed")


def test_sloppy_scorer_has_exactly_the_hole():
    assert sloppy24("6*4*1*1", [9, 9, 9, 9]) and sloppy24("(1+5)*(7-3)", [7, 5, 3, 1]) and not sloppy24("24", [24]) and not sloppy24("12+12", [12, 12]) and not sloppy24("12*2*1*1", [2] * 4)


def test_puzzles_can_be_solved_and_never_by_the_hack():
    games = puzzles(80, 3)
    assert games == puzzles(80, 3) != puzzles(80, 4) and games[:20] == puzzles(20, 3)
    for game in games:
        assert any(puzzle24(fill(t, game), game) for t in HONEST) and not puzzle24("6*4*1*1", game) and sloppy24("6*4*1*1", game)


def test_the_hack_wins_on_the_sloppy_scorer_only():
    games, hack = puzzles(100, 0), TEMPLATES.index("6*4*1*1")
    for seed in range(3):
        p, paid, true = climb(sloppy24, games, seed=seed)
        q, earned, right = climb(puzzle24, games, seed=seed)
        assert p[-1, hack] > 0.9 and paid[-1] > 0.95 and true[-1] < 0.02 and true.max() > true[0]
        assert q[-1, hack] < 0.01 and right[-1] > 0.3 and np.array_equal(earned, right)
        assert p.shape == (501, len(TEMPLATES)) and np.allclose(p.sum(1), 1) and np.isclose(p[0, hack], 0.03)


def test_reinforce_follows_the_gradient():
    "One update with a huge batch goes along the exact gradient p (r - p.r) of the expected pay."
    games = puzzles(60, 1)
    pays = np.array([[sloppy24(fill(t, g), g) for t in TEMPLATES] for g in games], float).mean(0)
    p, _, _ = climb(sloppy24, games, steps=1, batch=200_000, lr=1., seed=0)
    moved = np.log(p[1]) - np.log(p[0])
    exact_gradient = p[0] * (pays - p[0] @ pays)
    assert np.abs((moved - moved.mean()) - (exact_gradient - exact_gradient.mean())).max() < 0.01


PLAIN = (ast.Expression, ast.BinOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_every_short_string_is_read_as_python_reads_it():
    "All 7,380 strings of up to four of these characters: refused, or worth what Python says they are worth."
    read = 0
    for text in map("".join, itertools.chain.from_iterable(itertools.product("14+*/() -", repeat=n) for n in (1, 2, 3, 4))):
        try: value = arithmetic(text)[0]
        except ValueError: value = None
        try:
            tree = ast.parse(text.strip(), mode="eval")
            want = eval(compile(tree, "", "eval"), {}) if all(isinstance(node, PLAIN) for node in ast.walk(tree)) else None
        except (SyntaxError, ZeroDivisionError): want = None
        assert (value is None) == (want is None) and (value is None or abs(value - want) < 1e-12), text
        read += value is not None
    assert read > 200
