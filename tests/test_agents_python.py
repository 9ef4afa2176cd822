"Programs of strangers, in both engines: every limit, no way out, nothing left behind, and the same answer as Python's."
import os, sys, time
import pytest
from llmwatch_course.agents import python_tool as module
from llmwatch_course.agents.python_tool import LONGEST, Printed, PythonLimits, as_function, engine_here, python_tool, run_python
from llmwatch_course.agents.tools import Toolset
from conftest import absent

SHORT = PythonLimits(seconds=0.25, memory=96)


@pytest.fixture(params=["monty", "sandbox"])
def engine(request):
    if request.param == "monty" and engine_here() != "monty": absent("pydantic-monty")
    return request.param


STOPPED = {"loop": ("while True: pass", "timeout"), "stubborn": ("while True:\n    try:\n        while True: pass\n    except Exception: pass", "timeout"), "squares": ("x = 9**99999\nfor _ in range(60): x = x * x", "timeout"),
           "power": ("9**9**9", "timeout too_large"), "list": ("[0] * 10**9", "too_large"), "doubling": ("s = 'a'\nwhile True: s += s", "timeout too_large"), "recursion": ("def f(n): return f(n + 1)\nf(0)", "crash"),
           "brackets": ("(" * 5000 + "1" + ")" * 5000, "bad_args crash"), "sleep": ("import time\ntime.sleep(60)\n1 / 0", "denied crash"), "read": ("open('/etc/hostname').read()", "denied"), "write": ("open('stolen', 'w').write('x')", "denied"),
           "path": ("from pathlib import Path\nPath('stolen').write_text('x')", "denied"), "folder": ("import os\nos.listdir('/')", "denied"), "environment": ("import os\nos.environ['PATH']", "denied"), "process": ("import subprocess", "denied"),
           "system": ("import os\nos.system('touch stolen')", "denied crash"), "socket": ("import socket", "denied"), "dunder": ("().__class__.__base__.__subclasses__()", "denied crash"), "getattr": ("getattr((), '__cla' + 'ss__')", "denied crash"),
           "format": ("'{0.__class__}'.format(())", "denied crash"), "eval": ("eval('__imp' + 'ort__(\"os\")')", "denied crash"), "ctypes": ("import ctypes", "denied"), "input": ("input()", "denied crash"), "syntax": ("x ==", "bad_args"), "zero": ("1 / 0", "crash"),
           "surrogate": ("'\ud800'", "bad_args"), "long": ("#" * (LONGEST + 1), "too_large"), "name": ("nowhere", "crash"), "null": ("\x00", "bad_args crash")}


@pytest.mark.parametrize("what", STOPPED)
def test_every_limit(what, engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, kinds = STOPPED[what]
    start = time.perf_counter()
    r = run_python(code, SHORT, engine=engine)
    assert not r.ok and r.error in kinds.split() and len(r.text) <= 200 and time.perf_counter() - start < 10, r
    assert os.listdir(tmp_path) == []
    if r.error != "timeout": assert run_python(code, SHORT, engine=engine).text == r.text  # the same failure reads the same
    assert r.error != "timeout" or r.text == "stopped after 0.25 s"
    assert run_python("'fine'", engine=engine).value == "fine"


FINE = {"1 + 1": ("2", 2), "print('a', 'b', sep='-')\n3": ("a-b\n3", 3), "": ("", None), "None": ("", None), "print(1)": ("1", None), "'text'": ("'text'", "text"), "'''two\n    lines'''": ("'two\\n    lines'", "two\n    lines"), "(1, 2)": ("(1, 2)", [1, 2]),
        "{1}": ("{1}", "{1}"), "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nf(12)": ("144", 144), "import math\nmath.comb(20, 10)": ("184756", 184756), "x = [i * i for i in range(4)]\nx": ("[0, 1, 4, 9]", [0, 1, 4, 9]), "'\ud55c\uae00'[::-1]": ("'\uae00\ud55c'", "\uae00\ud55c"),
        "value_ = 3\nvalue_ + 1": ("4", 4), "try: 1 / 0\nexcept ZeroDivisionError: print('caught')": ("caught", None)}


@pytest.mark.parametrize("code", FINE)
def test_programs_that_are_fine(code, engine):
    r = run_python(code, engine=engine)
    assert (r.ok, r.text, r.value) == (True, *FINE[code]) and not r.truncated


def test_a_flood_is_cut_in_the_middle(engine):
    r = run_python("for i in range(20000): print(i)", PythonLimits(output=200), engine=engine)
    assert r.ok and r.truncated and r.text.startswith("0\n1\n") and r.text.endswith("19999") and len(r.text) < 260
    assert run_python("for i in range(10**9): print('x' * 1000)", SHORT, engine=engine).error in ("timeout", "too_large")
    with Toolset(python_tool(engine=engine)) as tools:
        r = tools.call("python", {"code": "print('x' * 15000)"})
        assert r.ok and r.truncated and len(r.text) <= 2000


def test_a_return_outside_a_function_ends_the_sandbox_s_frame_only():
    assert run_python("return 5", engine="sandbox").error == "bad_args" and run_python("return [1, 2, 3]", engine="sandbox").error == "bad_args"


def test_nothing_is_left_behind(engine):
    assert run_python("secret = 42", engine=engine).ok
    assert "secret" in run_python("secret", engine=engine).text and not run_python("secret", engine=engine).ok
    assert "secret" not in vars(sys.modules["builtins"])


def test_chance_has_a_seed():
    if engine_here() != "monty": absent("pydantic-monty")
    draws = [run_python("import random\nrandom.random(), random.randrange(9)", seed=seed, engine="monty").value for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    start = time.perf_counter()
    assert run_python("import time\ntime.sleep(30)\n'awake'", engine="monty").value == "awake" and time.perf_counter() - start < 20


def test_the_tool_says_what_it_is(engine, monkeypatch):
    made = python_tool(PythonLimits(seconds=0.3), engine=engine)
    assert made.description.endswith(f"Engine: {engine}.") and made.signature == "python(code: string)"
    with Toolset(made) as tools:
        assert tools.call("python", {"code": "6 * 7"}).value == 42
        assert tools.call("python", {"code": "while True: pass"}).error == "timeout"
        assert tools.call("python", {"code": 7}).error == "bad_args"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert engine_here() == "sandbox" and "Engine: sandbox" in python_tool().description
    pytest.raises(ValueError, engine_here, "exec")
    pytest.raises(ValueError, run_python, "1", PythonLimits(seconds=0))


def test_a_warm_call_is_quick():
    if engine_here() != "monty": absent("pydantic-monty")
    run_python("1", engine="monty")
    times = []
    for _ in range(50): start = time.perf_counter(); run_python("1 + 1", engine="monty"); times.append(time.perf_counter() - start)
    assert sorted(times)[5] < 3e-3


def test_printed_and_as_function():
    for most in range(5):
        p = Printed(most)
        for c in "abcdefgh": p("stdout", c)
        assert len(p.head + p.tail) <= most and p.total == 8
    assert "value_ = 1 + 1" in as_function("1 + 1") and as_function("").startswith("def main")
