"Tools: schemas and arguments against two independent judges, and every row of the failure table."
import json, math, os, signal, subprocess, sys, threading, time, weakref
from typing import Annotated, Literal, Optional
import jsonschema
import pytest
from hypothesis import given, settings as checks, strategies as st
from llmwatch_course.agents import tools as module
from llmwatch_course.agents.functions import brief, failure, mismatch, schema_of, success
from llmwatch_course.agents.tools import KINDS, Toolset, ToolError, ToolResult, shorten, tool


def ask(name: Annotated[str, "a name"], many: list[int], how: Literal["up", "down", 3] = "up", share: float = 0.5, most: Optional[int] = None, sure: bool = False) -> str:
    "Ask for something.\n\nThis is not for the planner."
    return f"{name} {many} {how} {share} {most} {sure}"


SCHEMA = schema_of(ask)
JUDGE = jsonschema.Draft202012Validator(SCHEMA)
ANY = st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1e9]) | st.sampled_from(["up", "down", "x", ""]), lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(["a", "name"]), x, max_size=2), max_leaves=3)


@checks(max_examples=80, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: ANY for key in ("name", "many", "how", "share", "most", "sure", "other")}) | ANY)
def test_arguments_are_judged_as_by_jsonschema(args):
    assert (mismatch(args, SCHEMA) is None) == JUDGE.is_valid(args)


@checks(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({"name": st.text(max_size=3) | st.just(3), "many": st.lists(st.integers(0, 3), max_size=2) | st.just([True])}, optional={"share": st.floats(0, 1) | st.just("1"), "most": st.none() | st.integers(0, 5), "sure": st.booleans() | st.just(1)}))
def test_arguments_are_judged_as_by_pydantic(args):
    pydantic = pytest.importorskip("pydantic")
    try: pydantic.validate_call(config={"strict": True})(ask)(**args); fits = True
    except pydantic.ValidationError: fits = False
    assert (mismatch(args, schema_of(ask)) is None) == fits


def test_schema_of_a_function():
    schema = schema_of(ask)
    assert schema["required"] == ["name", "many"] and schema["additionalProperties"] is False
    assert schema["properties"]["name"] == {"type": "string", "description": "a name"}
    assert schema["properties"]["most"] == {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    assert tool(ask).signature == "ask(name: string, many: array of integer, how: 'up'|'down'|3 = 'up', share: number = 0.5, most: integer | null = None, sure: boolean = False)"
    assert tool(ask).description == "Ask for something."
    with Toolset(tool(ask, isolated=False)) as tools:
        assert json.loads(json.dumps(tools.schemas()))[0]["function"]["parameters"] == schema
        assert tools.describe().startswith("ask(") and tools.names == ("ask",)


def test_a_function_that_is_no_tool_is_refused_when_it_is_made():
    def untyped(x): "?"
    def starred(*x: int): "?"
    def mapped(x: dict): "?"
    def bare(x: int): return x
    async def late(x: int): "?"
    for bad in (untyped, starred, mapped, late): pytest.raises(TypeError, tool, bad)
    pytest.raises(ValueError, tool, bare)
    pytest.raises(ValueError, tool, ask, seconds=math.inf)
    pytest.raises(ValueError, Toolset, tool(ask), tool(ask))


@checks(max_examples=100, deadline=None)
@given(st.text(max_size=300), st.integers(0, 200))
def test_shorten(text, most):
    short, cut = shorten(text, most)
    assert len(short) <= most and cut == (len(text) > most) and (cut or short == text)


def test_brief_never_fails_and_is_short():
    for value in ("x" * 10**6, 10**5000, -1, math.nan, None, [1], {}, {1}, object(), True, b"x", "\ud800"): assert len(brief(value)) < 60


def test_results_are_plain_data_without_addresses():
    class Rude(Exception):
        def __str__(self): raise KeyError
    assert success((1, {2: "x"}), 100).value == [1, {"2": "x"}]
    assert success(object(), 100).text == "<object object>"
    assert success(None, 100) == ToolResult(True, "None", None)
    assert success("x" * 1000, 100).truncated and success("x" * 1000, 100).value is None
    assert success(ToolResult(False, "x" * 1000, error="denied"), 100).error == "denied"
    assert failure(Rude()).text.startswith("Rude") and failure(ValueError("a\n" * 1000)).text.startswith("ValueError: a a")
    assert failure(ToolError("denied", "no")) == ToolResult(False, "no", error="denied")
    assert {failure(e()).error for e in (PermissionError, MemoryError, OverflowError, KeyError)} == {"denied", "too_large", "crash"}
    for result in (success("\ud800", 10), failure(ValueError("\ud800"))): result.text.encode()


precious = "precious.txt"

@tool(seconds=0.3)
def hostile(deed: str) -> object:
    "Do something terrible."
    if deed == "raise": raise KeyError("x" * 10_000)
    if deed == "hang": time.sleep(60)
    if deed == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)
    if deed == "busy":
        while True: pass
    if deed == "drip": [time.sleep(1e-3) for _ in range(60_000)]
    if deed == "leave": os._exit(0)
    if deed == "quit": sys.exit("good night")
    if deed == "interrupt": raise KeyboardInterrupt
    if deed == "hoard": keep.extend(bytes(1 << 24) for _ in range(10**6))
    if deed == "swell": return [0] * 10**10
    if deed == "delete": os.remove(precious)
    if deed == "overwrite": open(precious, "w").write("gone")
    if deed == "connect": __import__("socket").create_connection(("127.0.0.1", 9))
    if deed == "spawn": subprocess.Popen(["sleep", "60"])
    if deed == "fork": os.fork()
    if deed == "kill": os.kill(os.getppid(), signal.SIGKILL)
    if deed == "recurse": return WALLS[0].call("hostile", {"deed": "recurse"})
    if deed == "dig": return (lambda f: f(f))(lambda f: f(f))
    if deed == "print": print("x" * 10**6); os.write(1, b"loud")
    return {"flood": "x" * 10**7, "nothing": None, "odd": {1, 2}, "generator": (x for x in ()), "print": "printed", "fine": "fine"}[deed]

keep: list = []
WALLS: list = []
FAILURES = {"raise": "crash", "hang": "timeout", "deaf": "timeout", "busy": "timeout", "drip": "timeout", "leave": "crash", "quit": "crash", "interrupt": "crash", "hoard": "too_large", "swell": "too_large", "delete": "denied",
            "overwrite": "denied", "connect": "denied", "spawn": "denied", "fork": "denied", "kill": "denied", "recurse": "denied", "dig": "crash", "flood": None, "nothing": None, "odd": None, "generator": None, "print": None, "fine": None}


@pytest.fixture(scope="module")
def walls():
    with Toolset(hostile, memory=64) as walls:
        WALLS[:] = [walls]
        yield walls


@pytest.mark.parametrize("deed", FAILURES)
def test_whatever_a_tool_does_the_loop_goes_on(walls, deed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/precious).write_text("still here")
    walls.close()  # the copy must be made where the file is
    start = time.perf_counter()
    result = walls.call("hostile", {"deed": deed})
    assert result.error == FAILURES[deed] and result.ok == (result.error is None) and result.error in (None, *KINDS)
    assert time.perf_counter() - start < 8 and len(result.text) <= (2000 if result.ok else 200)
    assert (tmp_path/precious).read_text() == "still here" and os.listdir(tmp_path) == [precious]
    assert walls.call("hostile", {"deed": "fine"}).value == "fine"
    if deed == "flood": assert result.truncated and result.value is None


def test_plans_that_make_no_sense(walls):
    for name in ("", "hostil", "HOSTILE", None, 3, ["hostile"], {"a": 1}, "x" * 10**6):
        r = walls.call(name, {"deed": "fine"})
        assert r.error == "unknown_tool" and "hostile" in r.text and len(r.text) < 200
    for args in (None, [], "fine", {}, {"deed": 3}, {"deed": None}, {"deed": "fine", "more": 1}, {"x" * 10**6: 1}, {3: 4}, {"deed": ["fine"]}):
        r = walls.call("hostile", args)
        assert r.error == "bad_args" and "hostile(deed: string)" in r.text and len(r.text) < 200
    assert walls.call("hostile", {"deed": "x" * 2**21}).error == "too_large"
    @tool(isolated=False)
    def count(n: int) -> int:
        "Count."
        return n
    assert Toolset(count).call("count", {"n": 10**5000}).error == "too_large"


def test_the_caller_has_a_clock_too(walls):
    for seconds in (0, -1): assert walls.call("hostile", {"deed": "fine"}, seconds).error == "budget"
    start = time.perf_counter()
    assert walls.call("hostile", {"deed": "hang"}, 0.1).error == "budget" and time.perf_counter() - start < 4
    assert walls.call("hostile", {"deed": "hang"}, 5).error == "timeout"
    assert walls.call("hostile", {"deed": "fine"}, 1).ok


def test_a_late_answer_is_never_taken_for_another(walls):
    @tool(seconds=0.05)
    def slow(n: int) -> int:
        "Sleep sometimes."
        time.sleep(0.1 if n % 3 == 0 else 0)
        return n
    with Toolset(slow) as tools:
        for n in range(9):
            r = tools.call("slow", {"n": n})
            assert r.value == n if n % 3 else r.error == "timeout"


def gone(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    return False


@tool(allow=("processes",))
def child() -> int:
    "Start a process that outlives its parent, and give its number."
    return subprocess.Popen(["sleep", "60"]).pid


@tool
def whoami() -> int:
    "The process that runs this."
    return os.getpid()


def test_processes_end_with_their_toolset():
    tools = Toolset(whoami, child)
    pid, grandchild = tools.call("whoami", {}).value, tools.call("child", {}).value
    assert tools.call("whoami", {}).value == pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    assert tools.call("whoami", {}).error == "crash" and tools.call("whoami", {}).ok
    tools.close(); tools.close()
    second = tools.call("whoami", {}).value
    assert second != pid
    watch = weakref.ref(tools)
    del tools
    assert watch() is None and gone(second)
    deadline = time.monotonic() + 2
    while not gone(grandchild) and open(f"/proc/{grandchild}/stat").read().split()[2] != "Z" and time.monotonic() < deadline: time.sleep(0.01)
    assert gone(grandchild) or open(f"/proc/{grandchild}/stat").read().split()[2] == "Z"


def test_rights_are_given_tool_by_tool(tmp_path):
    @tool(allow=("files",))
    def note(path: str) -> str:
        "Write a note."
        return str(open(path, "w").write("x"))
    @tool
    def scribble(path: str) -> str:
        "Write without the right."
        return str(open(path, "w").write("x"))
    with Toolset(note, scribble) as tools:
        assert [tools.call(name, {"path": str(tmp_path/name)}).error for name in ("note", "scribble", "note")] == [None, "denied", None]
    assert os.listdir(tmp_path) == ["note"]


def test_in_this_process_too_nothing_is_raised():
    state = []
    @tool(isolated=False)
    def here(deed: str) -> int:
        "Misbehave here."
        state.append(deed)
        if deed == "quit": sys.exit()
        if deed == "recurse": return tools.call("here", {"deed": "recurse"}).value
        if deed == "interrupt": raise KeyboardInterrupt
        return len(state)
    tools = Toolset(here)
    assert [tools.call("here", {"deed": d}).error for d in ("quit", "fine")] == ["crash", None]
    assert tools.call("here", {"deed": "fine"}).value == 3  # it remembers
    with pytest.raises(KeyboardInterrupt): tools.call("here", {"deed": "interrupt"})
    assert tools.call("here", {"deed": "recurse"}).error in (None, "crash")


def test_a_closure_travels_and_its_changes_stay():
    seen = [1, 2, 3]
    @tool
    def look(n: int) -> list:
        "Look and change."
        seen.append(n)
        return seen
    with Toolset(look) as tools:
        assert tools.call("look", {"n": 4}).value == [1, 2, 3, 4] and seen == [1, 2, 3]


def test_threads_share_a_toolset():
    @tool
    def double(n: int) -> int:
        "Twice."
        return 2 * n
    wrong = []
    with Toolset(double) as tools:
        def work(a):
            for n in range(a, a + 30):
                if tools.call("double", {"n": n}).value != 2 * n: wrong.append(n)
        threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
    assert not wrong


def test_without_fork_one_sentence(monkeypatch):
    monkeypatch.delattr(module.os, "fork")
    with pytest.raises(RuntimeError, match="fork.*WSL"): Toolset(whoami)
    assert Toolset(tool(ask, isolated=False)).call("ask", {"name": "x", "many": []}).ok


def test_a_quick_call_is_quick():
    @tool
    def small(text: str) -> str:
        "Give it back."
        return text
    with Toolset(small) as away, Toolset(tool(small.function, isolated=False)) as here:
        def cost(tools):
            times = []
            for _ in range(300):
                start = time.perf_counter(); assert tools.call("small", {"text": "ha"}).ok; times.append(time.perf_counter() - start)
            return sorted(times)[30]  # a quiet moment of a busy machine
        cost(away)
        assert cost(away) < 0.3e-3 and cost(here) < 0.1e-3


def test_importing_needs_no_torch():
    code = "import sys, llmwatch_course.agents.tools, llmwatch_course.agents.calculator, llmwatch_course.agents.search, llmwatch_course.agents.python_tool\nprint(sorted({'torch', 'bm25s', 'pydantic_monty', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
