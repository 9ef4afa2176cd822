"The sandbox: what the gate refuses, what every limit does, attacks behind each layer, and processes that leave nothing behind."
import ast, contextlib, json, os, pickle, random, secrets, signal, socket, subprocess, sys, tempfile, threading, time, tomllib
from pathlib import Path
import pytest
from hypothesis import given, settings as checks, strategies as st
from llmwatch_course.foundations import sandbox
from llmwatch_course.foundations.sandbox import BUILTINS, MODULES, Refused, Reply, Rng, Worker, Zygote, admit, inspect_source, plain

ATTACKS = tomllib.loads((Path(__file__).parents[1]/"data"/"fixtures"/"attacks.toml").read_text())
NONE, GATE, NAMES, PROCESS, HOOK, ALL = (), (1,), (2,), (3,), (4,), (1, 2, 3, 4)


def loose(layers, *args, **options): return type("Loose", (Worker,), {"_layers": layers})(*args, **options)


@contextlib.contextmanager
def canary():
    "A file with a secret, and a server that tells the same secret, in a folder of their own."
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        path, secret = f"{folder}/secret.txt", secrets.token_hex(8)
        os.chmod(folder, 0o755)
        Path(path).write_text(secret)
        server.bind(path + ".socket"); server.listen()
        def serve():
            with contextlib.suppress(OSError), server.accept()[0] as line: line.sendall(secret.encode())
        thread = threading.Thread(target=serve); thread.start()
        try: yield path, secret
        finally:
            with socket.socket(socket.AF_UNIX) as line, contextlib.suppress(OSError): line.connect(path + ".socket")
            thread.join()


def reaches(source, layers):
    with canary() as (path, secret):
        caller = f"SECRET = {secret!r}\ndef look(program, path): return str(program.attack(path))"
        try: worker = loose(layers, source, [caller])
        except Refused: return False
        with worker: said = worker.call("look", path)
        return secret in str(said.value) or os.path.lexists(path + ".touched")


# ---- attacks

def test_there_are_enough_attacks(): assert len(ATTACKS) >= 30 and len({a["source"] for a in ATTACKS.values()}) == len(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name):
    source = ATTACKS[name]["source"]
    assert reaches(source, NONE), "an attack that fails without a sandbox proves nothing"
    assert not reaches(source, ALL) and not reaches(source, (1, 2))
    if ATTACKS[name]["family"] != "frames": assert not reaches(source, (2, 3, 4))    # what touches the outside is stopped without the gate, too
    if ATTACKS[name]["family"] in ("process", "net"):
        for layer in (NAMES, PROCESS, HOOK): assert not reaches(source, layer)
    try: program = admit(source)
    except Refused: return
    with canary() as (path, secret), pytest.raises((AttributeError, NameError, ImportError, TypeError)):
        program.attack(path)


def test_files_are_out_of_reach_for_the_kernel_and_for_the_hook_alike():
    for name in ("open", "io", "os_read", "pathlib", "write", "ctypes"):
        assert not reaches(ATTACKS[name]["source"], PROCESS) and not reaches(ATTACKS[name]["source"], HOOK), name


# ---- layer 1

REFUSED = {
    "import os": "import os", "from os import path": "from os", "from . import x": "import from", "from math import *": "has no *", "import math.x": "not allowed",
    "from random import random": "has no random", "x = ().__class__": "__class__", "__builtins__": "__builtins__", "def f(__x): pass": "__x", "f(__x=1)": "__x",
    "def __getattr__(n): pass": "__getattr__", "class A:\n    def __reduce__(self): pass": "__reduce__", "class A(metaclass=int): pass": "keywords",
    "import math as __x": "__x", "x._y": "_y", "x.gi_frame": "frame", "x.f_globals": "frame", "x.format": ".format", "x.y = 1": "is set", "del x.y": "is set",
    "x.y += 1": "is set", "for x.y in z: pass": "is set", "eval": "eval", "getattr": "getattr", "def open(): pass": "open", "global x": "Global",
    "def f():\n    x = 1\n    def g():\n        nonlocal x": "Nonlocal", "async def f(): pass": "AsyncFunctionDef", "with x: pass": "With", "try: pass\nexcept* ValueError: pass": "TryStar",
    "match x:\n    case A(__class__=y): pass": "__class__", "match x:\n    case A(tb_frame=y): pass": "frame", "match x:\n    case {**__y}: pass": "__y",
    "match x:\n    case __y: pass": "__y", "try: pass\nexcept E as __e: pass": "__e", "f'{x.__class__}'": "__class__", "f'{1:{x.__class__}}'": "__class__",
    "def f(x=[]): pass": "default", "lambda x={}: x": "default", "def f(*, x=set()): pass": "default", "(x := __y)": "__y", "x.ｍｒｏ": "mro", "ｅｖａｌ": "eval",
    "S = []\ndef f(): S.append(1)": "S", "S = {}\ndef f(): S[0] = 1": "S", "S = {}\ndef f(): S['a'][1] += 1": "S", "S = {}\ndef f(): del S[0]": "S",
    "S = [[]]\nf = lambda: S[0].pop()": "S", "x = (": "line 1", "x = 1\0": "", "-" * 100_000 + "1": "", "(" * 10_000: "", "1" + "+1" * 90_000: "", "#" * 200_001: "characters"}


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
def test_the_gate_refuses(source):
    with pytest.raises(Refused) as e: inspect_source(source)
    assert REFUSED[source] in str(e.value) and len(str(e.value)) < 400 and "\n" not in str(e.value)


WELCOME = ["import math, random as r, copy", "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int\n    def far(self): return self.x",
           "def f(s):\n    s = list(s); s.append(1); return s", "S = [1]\ndef f():\n    S = []\n    S.append(1)\n    return S", "def f():\n    while True: pass",
           "match 1:\n    case [x, *_]: pass\n    case {'a': 1 | 2}: pass\n    case _: pass", "T = 15\ndef f(n=T, m=-1, k=(1, 2), z=None): return n", "_x = 1\ndef _f(): return _x",
           "def f():\n    try: pass\n    except (ValueError, KeyError) as e: raise TypeError('no') from e\n    finally: pass", "def f():\n    yield from (i for i in range(3))",
           "x = f'{1:>{3}}' if not 1 < 2 else {**{}, 'a': [*()]}", "class A:\n    def __init__(self): pass\n    def __lt__(self, other): return True"]


@pytest.mark.parametrize("source", WELCOME, ids=range(len(WELCOME)))
def test_the_gate_lets_pass(source): inspect_source(source); admit(source)


def test_the_first_offence_is_named():
    with pytest.raises(Refused, match="^line 2: eval"): inspect_source("def f():\n    eval\n    x.__y\nimport os")


@given(st.text(max_size=60))
@checks(max_examples=200, deadline=None)
def test_the_gate_never_crashes(text):
    with contextlib.suppress(Refused): inspect_source(text)


def test_every_listed_name_exists_and_none_is_a_way_out():
    space = sandbox.namespace(MODULES, BUILTINS)
    for module, names in MODULES.items():
        thin = space["__builtins__"]["__import__"](module)
        for name in names.split(): assert type(getattr(thin, name)) is not type(os)
        with pytest.raises(AttributeError, match="has no"): getattr(thin, "".join("sys"))
    assert not {"open", "eval", "exec", "compile", "getattr", "setattr", "globals", "vars", "input", "super"} & set(space["__builtins__"])


# ---- layers 1 and 2 in this process

def test_admit_gives_functions_and_shares_nothing():
    source = "import random\nfrom dataclasses import dataclass\nfrom math import sqrt\nN = 2\ndef f(x): return sqrt(x) * N\ndef g(): return random.Random(1).random()"
    one, two = admit(source), admit(source)
    assert sorted(vars(one)) == ["f", "g"] and one.f(4) == 4 and one.g() == random.Random(1).random() and one.f.__globals__ is not two.f.__globals__
    assert one.f.__globals__["random"] is not two.f.__globals__["random"]


def test_a_program_cannot_change_this_process(capsys):
    before = random.Random.__init__
    for source in ("import random, dataclasses\ndataclasses.dataclass(random.Random)", "import collections, dataclasses\ndataclasses.dataclass(frozen=True)(collections.Counter)"):
        with pytest.raises(TypeError, match="classes of this program"): admit(source)
    for source in ("type(int)", "type(lambda: 0)", "type(type)", "def f(): pass\ntype(f)", "class A: pass\ntype(A)", "import math\ntype(math)"):
        with pytest.raises(TypeError, match="no type of"): admit(source)
    assert admit("from typing import *" .replace("*", "Dict, List, Optional") + "\nState = Dict[str, List[Optional[int]]]\ndef f(x: State | None) -> 'State': return type(x) is int and type(x)(7)").f(1) == 7
    admit("print('heard?')\ndef f(): print('heard?')").f()
    assert random.Random.__init__ is before and capsys.readouterr() == ("", "")


def test_errors_of_an_admitted_program_show_its_line():
    import traceback
    program = admit("def f(x):\n    return 1 / x   # here", name="ladder")
    try: program.f(0)
    except ZeroDivisionError: assert "# here" in traceback.format_exc() and "<ladder>" in traceback.format_exc()


def test_plain():
    assert plain({1: (2, {"a": None}), False: 1.5}) == {"1": [2, {"a": None}], "false": 1.5}
    for bad in (float("nan"), {1, 2}, object(), {(1, 2): 3}):
        with pytest.raises((ValueError, TypeError)): plain(bad)


# ---- layers 3 and 4, and the worker

PROGRAM = """
import math, copy
from collections import namedtuple
from dataclasses import dataclass
@dataclass(frozen=True)
class Point:
    x: int
    y: "int" = 0
def fine(x=1): return x
def loop():
    while True: pass
def memory(n): return len([0] * n)
def deep(n): return deep(n + 1)
def talk(n): return "x" * n
def chatter(): print("x" * 10**6); return "said"
def nan(): return float("nan")
def things(): return {1, 2}
def point(): return copy.deepcopy([Point(3).x, namedtuple("Pair", "a b")(1, 2).b])
def thing(): return Point(3)
def nest(n):
    x = []
    for i in range(n): x = [x]
    return x
def keys(): return {1: (1, 2), None: "해", "a": "\\ud800"}
def spoil(state): state["board"].append(1); return 1
def spoil_fail(state): state["board"] = {1, 2}; raise ValueError("no")
def tuples(state): state["board"] = (1, 2); return 1
def draw(rng, n): return [rng.random() for i in range(n)]
class Silent(Exception):
    def __str__(self): return 1
def silent(): raise Silent()
def index(board): return board[99]
def order(): return list({"north", "east", "south", "west", "up"})
def regex(n): return sum(i for i in range(n))
"""


@pytest.fixture
def worker():
    with Worker(PROGRAM, seconds=2.) as it: yield it


def test_values_come_back_as_decoded_json(worker):
    assert worker.call("keys").value == {"1": [1, 2], "null": "해", "a": "\ud800"}
    assert worker.call("point") == Reply([3, 2]) and worker.call("fine", {"a": (1, 2)}).value == {"a": [1, 2]}


@pytest.mark.parametrize("name, said", [("nan", "not JSON compliant"), ("things", "set is not JSON"), ("thing", "Point is not JSON"), ("missing", "no function missing"),
                                        ("silent", "can't be shown"), ("deep", "RecursionError"), ("memory", "MemoryError"), ("nest", "RecursionError")])
def test_errors_are_told_and_survived(worker, name, said):
    args = {"deep": [0], "memory": [10**9], "nest": [10**5]}.get(name, [])
    assert said in worker.call(name, *args).error and worker.call("fine", 7) == Reply(7)


def test_the_error_shows_the_frames_of_the_program_only(worker):
    error = worker.call("index", []).error
    assert error.splitlines() == ["line 32, in index: def index(board): return board[99]", "IndexError: list index out of range"]
    assert "answer" not in worker.call("things").error and len(worker.call("deep", 0).error.splitlines()) == 4


def test_changed_arguments_are_noticed(worker):
    assert worker.call("spoil", {"board": []}).changed and worker.call("spoil_fail", {"board": []}).changed
    assert not worker.call("fine", {"board": []}).changed and not worker.call("tuples", {"board": [1, 2]}).changed
    assert worker.call("tuples", {"board": [1]}).changed and not worker.call("draw", Rng(1), 3).changed


def test_rng_is_the_same_inside_and_outside(worker):
    g = random.Random(5)
    assert worker.call("draw", Rng(5), 4).value == [g.random() for _ in range(4)]
    assert worker.call("fine", {"__rng__": 5, "seed": 5}).value == {"__rng__": 5, "seed": 5}    # nothing of this shape is special


def test_the_clock_is_for_the_request_and_earlier_answers_are_kept(worker):
    start = time.monotonic()
    replies = worker.calls([("fine", 1), ("fine", 2), ("loop",), ("fine", 3)])
    assert replies == [Reply(1), Reply(2), Reply(error="time"), Reply(error="time")] and time.monotonic() - start < 10
    assert worker.call("fine", 4) == Reply(4)
    with Worker("while True: pass", seconds=0.3) as endless: assert endless.call("f") == Reply(error="time")
    with Worker("def f(): return sum(range(10**12))", seconds=0.3) as busy: assert busy.call("f").error == "time"    # no Python signal would end this loop


def test_output_is_limited():
    with Worker(PROGRAM, output=1000) as it:
        assert it.call("talk", 2000) == Reply(error="output") and it.call("talk", 900).value == "x" * 900 and it.call("chatter").value == "said"
    with loose((2, 3), "import math", ["def flood(program):\n    x = 'x' * 10**6\n    raise ValueError(x)"]) as it: assert len(it.call("flood").error) < 1000


def raw(source): return "def f(*args):\n    import os, signal, socket\n    " + source.replace("\n", "\n    ")


@pytest.mark.parametrize("lie", ["os.write(3, b'no json\\n')", "os.write(3, b'[1,2,3]\\n')", "os.write(3, b'[' * 100000 + b'\\n')", "os.write(3, b'x' * 10**6)",
                                 "os.close(3)", "os._exit(0)", "os.kill(os.getpid(), 9)", "os.write(3, b'\\xff\\n')", "socket.socket(fileno=3).shutdown(2)"])
def test_a_child_that_lies_or_dies_is_an_error(lie):
    with loose(NONE, raw(lie), output=10_000) as it:
        assert it.call("f").error in ("died", "time") or "died" in str(it.call("f").error)
        it.source = "def f(): return 1"
        it.close()
        assert it.call("f") == Reply(1)


def test_a_reply_given_before_the_question_does_not_count():
    with loose(NONE, raw("if not args: os.write(3, b'[1,null,false]\\n[\"forged\",null,false]\\n')\nreturn 'true'")) as it:
        it.call("f"); time.sleep(0.1)
        assert it.call("f", 1).value == "true"


def inside(code, layers=ALL[1:], **options):
    with loose(layers, raw(code), **options) as it: return it.call("f")


def test_limits_hold_without_the_other_layers():
    assert "MemoryError" in inside("return len(bytearray(2**30))", PROCESS).error and inside("return len(bytearray(2**30))", PROCESS, memory=2048, seconds=20).value == 2**30
    assert "Errno 24" in inside("return os.open('.', 0)", PROCESS).error and "Errno 24" in inside("return os.pipe()", PROCESS).error
    assert "Errno 24" in inside("socket.socket()", PROCESS).error and "BlockingIOError" in inside("os.fork()", PROCESS).error
    assert "PermissionError" in inside("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", HOOK).error
    assert "ValueError" in inside("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))", PROCESS).error
    assert inside("import resource; return [resource.getrlimit(r)[1] for r in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]", PROCESS).value == [0, 0, 0]


def test_there_is_nothing_to_find_in_the_child():
    assert set(inside("return dict(os.environ)", PROCESS).value) <= {"PYTHONHASHSEED", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    open_files = inside("found = []\nfor i in range(64):\n    try: os.fstat(i); found.append(i)\n    except OSError: pass\nreturn found", NONE).value
    assert open_files == [0, 1, 2, 3]                                    # the null device three times, and the channel
    if os.getuid() == 0: assert inside("return os.getuid()", PROCESS).value == 65534
    assert "site-packages" not in json.dumps(inside("import sys; return sys.path", NONE).value)


def test_the_hook_answers_everything_outside():
    for code in ("os.listdir('.')", "os.kill(1, 9)", "os.mkdir('x')", "os.chdir('/')", "os.system('true')", "import urllib.request", "import sys; sys.settrace(None)",
                 "import sys; sys._getframe()", "import mmap", "open('x')", "import gc; gc.get_objects()", "socket.socket()"):
        assert "PermissionError: the sandbox does not allow" in inside(code, HOOK).error, code


# ---- helpers

def twice(program, x, times: "int" = 2):
    "Runs inside."
    import random
    return [program.fine(x)] * times + [random.Random(1).random()]


def test_helpers_run_beside_the_program():
    with Worker(PROGRAM, helpers=[twice, "LIMIT = 3\ndef limit(program): return LIMIT"]) as it:
        assert it.call("twice", "a").value == ["a", "a", random.Random(1).random()] and it.call("limit").value == 3
        assert it.call("twice", "a", 1).value[:1] == ["a"] and pickle.loads(pickle.dumps(it)).call("limit").value == 3
    with Worker(PROGRAM, helpers=["def broken(program): return missing\nx = missing"]) as it: assert "helpers do not load" in it.call("fine").error
    with Worker("x = 1 / 0\ndef f(): pass") as it: assert it.call("f").error == "the program does not load\nline 1, in <module>: x = 1 / 0\nZeroDivisionError: division by zero"


def test_set_order_is_decided_by_the_hash_seed():
    def order(seed):
        with Worker(PROGRAM, hash_seed=seed) as it: return it.call("order").value
    assert order(0) == order(0) and len({tuple(order(i)) for i in range(3)}) > 1


# ---- processes

def running(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def children(pid): return [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t/"children").read_text().split()]


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@linux
def test_workers_that_are_closed_or_forgotten_are_gone():
    zygote = Zygote.alive[0] if 0 in Zygote.alive else Worker("").calls([("f",)]) and Zygote.alive[0]
    crowd = [Worker(PROGRAM) for _ in range(30)]
    assert all(w.call("fine", i).value == i for i, w in enumerate(crowd)) and len(children(zygote.process.pid)) >= 30
    for w in crowd[:15]: w.close(); w.close()
    del crowd, w                                                         # the rest is forgotten, and ended with the next order
    with Worker(PROGRAM) as it: it.call("fine")
    assert len(children(zygote.process.pid)) <= 1


@linux
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_dead_parent_leaves_no_orphan(sign):
    code = ("import sys, threading, time; from llmwatch_course.foundations.sandbox import Worker, Zygote\n"
            "w = Worker('def f(): return 1\\ndef loop():\\n    while True: pass', seconds=60); w.call('f')\n"
            "print(Zygote.alive[0].process.pid, flush=True); w.call('loop')")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        zygote = int(parent.stdout.readline())
        time.sleep(0.2)
        family = [zygote, *children(zygote)]
        assert len(family) == 2 and all(map(running, family))
        os.kill(parent.pid, sign)
    end = time.monotonic() + 5
    while any(map(running, family)) and time.monotonic() < end: time.sleep(0.02)
    assert not any(map(running, family))


def test_a_lost_zygote_is_replaced(worker):
    assert worker.call("fine", 1) == Reply(1)
    os.kill(Zygote.alive[0].process.pid, signal.SIGKILL)
    time.sleep(0.1)
    with Worker(PROGRAM) as other: assert other.call("fine", 2) == Reply(2)
    assert worker.call("fine", 3).value == 3


def test_many_threads_at_once():
    with Worker(PROGRAM) as shared:
        said, errors = {}, []
        def work(i):
            try:
                with Worker(PROGRAM) as own: said[i] = [own.call("fine", [i, j]).value for j in range(5)] + [shared.call("fine", i).value]
            except BaseException as e: errors.append(e)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for t in threads: t.start()
        for t in threads: t.join()
    assert not errors and said == {i: [[i, j] for j in range(5)] + [i] for i in range(12)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_copy_of_this_process_starts_its_own(worker):
    worker.call("fine")
    code = ("import os; from llmwatch_course.foundations.sandbox import Worker\nw = Worker('def f(x): return x')\nw.call('f', 1)\npid = os.fork()\n"
            "ok = all(w.call('f', i).value == i for i in range(200))\n"
            "if pid == 0: os._exit(0 if ok else 1)\nprint(ok and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "0", done.stderr


def test_requests_are_checked_before_they_are_sent(worker):
    for bad in (float("inf"), {1}, object()):
        with pytest.raises((ValueError, TypeError)): worker.call("fine", bad)
    assert worker.calls([]) == [] and worker.call("fine", 1) == Reply(1)


def test_without_fork_one_sentence(monkeypatch):
    monkeypatch.delattr(os, "fork")
    monkeypatch.setattr(Zygote, "alive", {})
    with pytest.raises(RuntimeError, match="on Windows use WSL"): Worker("def f(): pass").call("f")


def test_the_source_sent_to_the_child_is_whole(): ast.parse(sandbox.script())
