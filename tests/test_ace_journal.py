"The journal: killed anywhere, damaged anywhere, one writer, and what it can tell."
import os, random, signal, subprocess, sys, warnings
import pytest
from llmwatch_course.ace import journal as module
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.files import to_markdown
from llmwatch_course.ace.journal import Journal, Reader, read, recover, sealed, to_line
from llmwatch_course.ace.playbook import Playbook


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    "No waiting for the disk."
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def path(tmp_path): return tmp_path/"notes.jsonl"


def add(text, source="s", section="apis"): return Delta([Op("ADD", section=section, content=text)], source)


def stream(n, seed=0):
    "Deltas of all kinds, some with operations that must be rejected."
    rng, playbook = random.Random(seed), Playbook()
    for i in range(n):
        live = [b.id for b in playbook.bullets if b.live] or ["none"]
        a, b = rng.choice(live), rng.choice(live)
        ops = [rng.choice([Op("ADD", section=rng.choice(["apis", "checks", "unknown"]), content=f"Rule {rng.randint(0, 30)}\n\u2028é 규칙 {i}"), Op("TAG", id=a, helpful=1), Op("TAG", id=a, harmful=2),
               Op("UPDATE", id=a, content=f"Better {i}", expect=rng.randint(0, 1)), Op("REPLACE", id=a, content=f"Other {i}"), Op("MERGE", ids=[a, b], keep=a), Op("RETIRE", id=a),
               Op("PIN", id=a), Op("QUARANTINE", id=b), Op("NONSENSE")]) for _ in range(rng.randint(1, 3))]
        delta = Delta(ops, f"episode {i}")
        playbook, _ = apply(playbook, delta)
        yield delta


def fill(path, deltas):
    with Journal(path) as journal:
        for delta in deltas: journal.append(delta)
    return journal


@pytest.mark.parametrize("seed", range(3))
def test_a_journal_is_the_sequence_of_its_deltas(path, seed):
    playbook, states = Playbook(), [Playbook()]
    with Journal(path) as journal:
        for delta in stream(60, seed):
            playbook, report = apply(playbook, delta)
            assert journal.append(delta) == report
            states.append(playbook)
        assert journal.playbook == playbook == recover(path) and journal.playbook.version == 60
        assert [journal.at(n) for n in range(61)] == states
        for bullet in playbook.bullets:
            life = journal.blame(bullet.id)
            assert life[0].before is None and life[-1].after == bullet and all(str(c) for c in life)
            assert all(a.after == b.before for a, b in zip(life, life[1:]))
        assert Journal(path).blame("nobody") == []


@pytest.mark.parametrize("seed", range(3))
def test_undo_goes_back_step_by_step_and_never_twice_over_the_same(path, seed):
    with Journal(path) as journal:
        for delta in stream(20, seed): journal.append(delta)
        for n in (1, 2, 4):
            done = sum(d is not None and d.source.startswith("undo ") for d, _, _ in journal.history())
            assert all(not r.rejected for r in journal.undo(n)) and journal.playbook == journal.at(20 - done - n)
        journal.append(add("new", "after"))
        journal.undo()
        assert journal.playbook == journal.at(13)
        journal.undo(99)
        assert journal.playbook == Playbook() == recover(path) and journal.undo() == []


def test_killed_at_every_byte_it_is_before_or_after(path, tmp_path):
    fill(path, list(stream(5, 3)))
    whole, states = path.read_bytes(), [Reader(path).at(n) for n in range(6)]
    cut = tmp_path/"cut.jsonl"
    warnings.simplefilter("ignore")
    for k in range(len(whole) + 1):
        cut.write_bytes(whole[:k])
        n = whole[:k].count(b"\n")
        assert recover(cut) == states[n]
        if k % 41 == 0:
            with Journal(cut) as journal:
                assert journal.playbook == states[n] and cut.read_bytes() == whole[:whole[:k].rfind(b"\n") + 1]
                journal.append(add("on we go"))
            assert recover(cut).version == n + 1


@pytest.mark.filterwarnings("default")
def test_a_torn_line_is_told(path):
    fill(path, [add("a"), add("b", "t")])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="no whole line"): assert recover(path).version == 1


@pytest.mark.parametrize("rest", [b"", b"\n", b"\0" * 50, b"\0" * 50 + b"\n", b"junk"])
def test_a_torn_line_may_hold_anything(path, rest):
    fill(path, [add("a"), add("b", "t")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:60] + rest)
    with pytest.warns(UserWarning): assert recover(path).version == 1


def test_a_write_that_fails_after_any_byte_leaves_the_file_as_it_was(path, monkeypatch):
    fill(path, [add("a")])
    whole, length = path.read_bytes(), len(to_line(sealed(2, "0" * 64, "delta", add("b", "t").to_json())))
    write = os.write
    for room in range(0, length, 7):
        left = [room]
        def some(fd, data, left=left):
            if not left[0]: raise OSError("full")
            n = write(fd, data[:left[0]])
            left[0] -= n
            return n
        with Journal(path) as journal:
            monkeypatch.setattr(os, "write", some)
            with pytest.raises(OSError, match="full"): journal.append(add("b", "t"))
            assert journal.playbook.version == 1 and path.read_bytes() == whole
            with pytest.raises(ValueError, match="not open"): journal.append(add("c", "u"))
        monkeypatch.setattr(os, "write", write)
    assert fill(path, [add("b", "t")]).playbook.version == 2


def test_a_line_that_the_disk_did_not_confirm_does_not_count(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(add("a"))
        def no(fd): raise OSError("input/output error")
        monkeypatch.setattr(os, "fsync", no)
        with pytest.raises(OSError): journal.append(add("b", "t"))
        assert journal.playbook.version == 1 == recover(path).version


def test_damage_before_the_last_line_is_an_error_that_says_where(path):
    fill(path, [add("a"), add("b", "t"), add("c", "u")])
    whole = path.read_bytes()
    for k in range(whole[:-1].rindex(b"\n") + 1):
        if k % 3 and whole[k] != 10: continue
        for byte in (b"\0", b"\n"):
            if whole[k:k + 1] == byte: continue
            path.write_bytes(whole[:k] + byte + whole[k + 1:])
            with pytest.raises(ValueError, match=f"line {whole[:k].count(10) + 1} "): recover(path)


@pytest.mark.parametrize("order, line", [((1, 2), 1), ((0, 2), 2), ((0, 2, 1), 2), ((0, 1, 1), 3), ((0, 0, 1, 2), 2)])
def test_lines_can_not_be_moved_doubled_or_taken_out(path, order, line):
    fill(path, [add("a"), add("b", "t"), add("c", "u")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(ValueError, match=f"line {line} .*does not follow"): recover(path)


def test_a_line_that_would_mean_something_else_today_stops_recovery(path):
    path.write_bytes(to_line(sealed(1, "", "delta", Delta([Op("PIN", id="nobody")]).to_json())))
    with pytest.raises(ValueError, match="version 1 was accepted once"): recover(path)


def test_a_missing_journal_is_no_empty_playbook(path):
    with pytest.raises(FileNotFoundError): recover(path)
    with pytest.raises(ValueError, match="not open"): Journal(path).append(add("a"))


def test_snapshots_shorten_recovery_and_change_nothing(path, monkeypatch):
    deltas = list(stream(40, 5))
    with Journal(path) as journal:
        journal.snapshot()
        assert not module.beside(path, ".md").exists()
        for i, delta in enumerate(deltas):
            journal.append(delta)
            if i == 29: journal.snapshot()
    monkeypatch.setattr(module, "replay", lambda playbook, entries, real=module.replay: real(playbook, entries if len(entries) == 10 else 1 / 0))
    again = recover(path)
    assert again == journal.playbook and again.version == 40 and [b.id for b in again.bullets] == [b.id for b in journal.playbook.bullets]
    assert set(again.applied) == set(journal.playbook.applied) and all(apply(again, delta)[1].replayed for delta in deltas)


@pytest.mark.filterwarnings("ignore")
def test_a_snapshot_cut_or_changed_anywhere_is_not_used(path):
    journal = fill(path, [add("a"), add("b", "t")])
    with journal.open(): journal.snapshot()
    shot = module.beside(path, ".md")
    whole = shot.read_bytes()
    for k in range(0, len(whole), 2):
        for data in (whole[:k], whole[:k] + b"~" + whole[k + 1:]):
            shot.write_bytes(data)
            assert recover(path) == journal.playbook
    shot.with_name(f".{shot.name}.1.new").write_bytes(whole[:40])  # a writer died before the rename
    shot.write_bytes(whole)
    assert recover(path) == journal.playbook


def test_a_failed_snapshot_leaves_the_old_one(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(add("a"))
        journal.snapshot()
        old = module.beside(path, ".md").read_bytes()
        journal.append(add("b", "t"))
        def no(*args): raise OSError("full")
        monkeypatch.setattr(os, "replace", no)
        with pytest.raises(OSError): journal.snapshot()
    assert module.beside(path, ".md").read_bytes() == old and recover(path) == journal.playbook
    assert sorted(p.name for p in path.parent.iterdir()) == ["notes.jsonl", "notes.jsonl.lock", "notes.jsonl.md"]


def test_a_snapshot_knows_when_the_end_was_cut_off(path):
    with Journal(path) as journal:
        for i in range(3): journal.append(add(f"r{i}", f"t{i}"))
        journal.snapshot()
    lines = path.read_bytes().splitlines(keepends=True)
    for n in range(3):
        path.write_bytes(b"".join(lines[:n]))
        with pytest.raises(ValueError, match="lines are missing"): recover(path)


def test_one_writer_any_number_of_readers(path):
    with Journal(path) as journal:
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"): Journal(path).open()
        journal.append(add("a"))
        assert recover(path) == journal.playbook
    module.beside(path, ".lock").write_text("1")  # a number left by somebody, alive or not, holds nothing
    with Journal(path) as journal: assert journal.playbook.version == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_the_writer_does_not_write(path):
    with Journal(path) as journal:
        journal.append(add("a"))
        if not (child := os.fork()):
            try: journal.append(add("b", "t"))
            except ValueError as error: os._exit(7 if "one writer" in str(error) else 1)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        journal.append(add("c", "u"))


WRITER = """
import sys
from llmwatch_course.ace.deltas import Delta, Op
from llmwatch_course.ace.journal import Journal
with Journal(sys.argv[1]) as journal:
    for i in range(10**6):
        journal.append(Delta([Op("ADD", section="apis", content=f"Rule {i}.")], f"episode {i}"))
        print(journal.playbook.version, flush=True)
        if i % 9 == 5: journal.snapshot()
"""


@pytest.mark.filterwarnings("ignore")
def test_killed_for_real_nothing_that_was_told_is_lost(path):
    for run in range(2):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        told = [int(process.stdout.readline()) for _ in range(20 + 5 * run)]
        with pytest.raises(BlockingIOError, match=f"process {process.pid}"): Journal(path).open()
        process.send_signal(signal.SIGKILL)
        told += map(int, process.communicate()[0].split())
        with Journal(path) as journal: assert journal.playbook.version - told[-1] in (0, 1)
        path.rename(path.with_name(f"{run}"))
        module.beside(path, ".md").unlink(missing_ok=True)


def test_a_purge_leaves_nothing_on_the_disk_and_the_journal_goes_on(path):
    first = add("Mail goes to 12 Elm Street.", "task 1")
    with Journal(path) as journal:
        for delta in (first, add("b", "t")): journal.append(delta)
        journal.snapshot()
        elm = journal.playbook.active()[0].id
        report = journal.append(Delta([Op("PURGE", id=elm)], "asked"))
        assert report.accepted and journal.playbook.version == 3 == recover(path).version and journal.playbook.get(elm) is None
        assert not any(b"Elm" in p.read_bytes() for p in path.parent.iterdir())
        assert journal.append(first).replayed
        journal.append(add("c", "u"))
        assert [journal.at(n).version for n in (3, 4)] == [3, 4]
        with pytest.raises(LookupError, match="versions 3 to 4"): journal.at(2)
        journal.snapshot()
        journal.undo(5)
        assert journal.playbook == journal.at(3)
    with Journal(path) as again: assert again.playbook == journal.playbook and again.append(first).replayed


def test_a_crash_in_a_purge_is_before_or_after(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(add("secret"))
        journal.snapshot()
        def no(*args): raise OSError("gone")
        monkeypatch.setattr(os, "replace", no)
        with pytest.raises(OSError): journal.append(Delta([Op("PURGE", id=journal.playbook.active()[0].id)], "asked"))
    assert recover(path) == journal.playbook and journal.playbook.version == 1


def test_a_budget_is_kept_or_nothing_happens(path):
    with Journal(path, budget=12) as journal:
        journal.append(add("one two"))
        size = path.stat().st_size
        with pytest.raises(ValueError, match="budget is 12"): journal.append(add("three four five six seven eight nine ten", "t"))
        assert path.stat().st_size == size and journal.playbook.version == 1
    with Journal(path, budget=1) as journal:  # a smaller budget than before: only steps back are let through
        with pytest.raises(ValueError): journal.append(add("x", "u"))
        journal.append(Delta([Op("RETIRE", id=journal.playbook.active()[0].id)], "v"))
    with Journal(path, budget=50, count_tokens=len) as journal:
        with pytest.raises(ValueError, match="its budget is 50"): journal.append(add("a" * 50, "w"))


def test_a_journal_can_begin_with_a_playbook(path):
    start = Playbook(name="desk", ids="counter", sections=("rules", "others"))
    for delta in (add("a", "s", "rules"), add("b", "t", "rules")): start, _ = apply(start, delta)
    with Journal(path, start=start) as journal:
        assert journal.playbook == start and journal.append(add("a", "s", "rules")).replayed
        journal.append(add("c", "u", "rules"))
    with Journal(path, start=Playbook(name="other")) as journal:
        p = journal.playbook
        assert (p.name, p.ids, p.sections, p.version, [b.id for b in p.active()]) == ("desk", "counter", ("rules", "others"), 3, [f"rules-0000{i}" for i in (1, 2, 3)])
        assert journal.at(2) == start and [c.version for c in journal.blame("rules-00001")] == [2]
    with Journal(path.with_name("new.jsonl"), start=Playbook(name="fresh")) as journal: pass
    assert recover(path.with_name("new.jsonl")).name == "fresh"


def test_options_of_a_call_leave_no_trace_in_what_is_replayed(path):
    with Journal(path) as journal:
        journal.append(add("a"))
        mixed = Delta([Op("RETIRE", id=journal.playbook.active()[0].id), Op("ADD", section="apis", content="b")], "t")
        report = journal.append(mixed, allowed=("ADD",))
        assert len(report.rejected) == 1 and journal.append(Delta([Op("PIN", id="x")], "u"), strict=True).rejected
        assert journal.playbook.version == 2 and recover(path) == journal.playbook and len(journal.playbook) == 2


def test_strange_text_survives(path):
    delta = Delta([Op("ADD", section="apis", content='a\u2028b\r\n","sha":"x\\ \ud800'), Op("TAG", id="\ud800", note="\n")], 'task \ud800\n"')
    with Journal(path) as journal: journal.append(delta)
    entries, size = read(path)
    assert recover(path) == journal.playbook and len(entries) == 1 and size == path.stat().st_size
    assert to_markdown(recover(path)) == to_markdown(journal.playbook)
