"The Markdown file: every playbook comes back, hand edits become deltas, and saving is all or nothing."
import json, os, time
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from llmwatch_course.ace.deltas import Delta, Op, apply, cleaned
from llmwatch_course.ace.files import comment, diff, escape, from_markdown, front, item, one_line, save, to_markdown, unescape
from llmwatch_course.ace.playbook import SECTIONS, Bullet, Playbook

calm = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PIECES = ["## x", "\n## x", "\n- [a-1] b", "---\n", "-->", "<!-- helpful=9 -->", "\n<!--", "\n  <!-- rev=7 -->", "```\n", "\r\n", "\r", "\t", "\n\n", "  ", "&#13;", "&#", "\ufeff", "\u2028", "\x85", "\0", "\ud800", "규칙"]
WORDS = st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3))).map("".join), st.text(st.characters(categories=["Cs", "Cc", "Zl", "Zs"])))
SOURCES = WORDS.map(lambda text: json.loads(json.dumps(text)))  # as an Op takes them: two halves that make one character are that character
NAMES = st.from_regex(r"[\w-]{1,12}", fullmatch=True)
COUNT = st.integers(0, 10**6)


@st.composite
def playbooks(draw):
    ids = draw(st.lists(NAMES, unique=True, max_size=5))
    bullet = lambda id: Bullet(id, draw(NAMES), draw(WORDS), draw(COUNT), draw(COUNT), draw(COUNT), draw(st.sampled_from(["active", "quarantined", "retired"])), draw(COUNT),
                               draw(st.one_of(st.none(), NAMES)), draw(st.booleans()), tuple(draw(st.lists(SOURCES, max_size=3))))
    return Playbook([bullet(id) for id in ids], (), draw(COUNT), draw(WORDS.filter(bool)), draw(st.sampled_from(["content", "counter"])), draw(st.lists(NAMES, min_size=1, unique=True)), draw(COUNT))


def same(a, b):
    return list(a.bullets) == list(b.bullets) and (a.version, a.name, a.ids, a.sections) == (b.version, b.name, b.ids, b.sections) and (a.ids != "counter" or a.last == b.last)


@calm
@given(playbooks(), WORDS)
def test_every_playbook_comes_back_and_its_file_is_a_fixed_point(playbook, description):
    file = to_markdown(playbook, description)
    file.encode()
    back = from_markdown(file)
    assert same(back, playbook) and back == playbook
    assert to_markdown(back, front(file)[0].get("description", "")) == file
    assert same(from_markdown("\ufeff" + file), playbook)
    if "\r" not in file: assert same(from_markdown(file.replace("\n", "\r\n")), playbook)
    live = from_markdown(to_markdown(playbook, tombstones=False))
    assert list(live.bullets) == [b for b in playbook.bullets if b.live]


@calm
@given(WORDS)
def test_escapes(text):
    assert unescape(escape(text)) == text == unescape(one_line(text)) and "\n" not in one_line(text) and "\r" not in escape(text)
    escape(text).encode()


@calm
@given(WORDS, WORDS)
def test_no_content_becomes_structure(a, b):
    file = to_markdown(Playbook([Bullet("a-1", "apis", a), Bullet("b-2", "checks", b, sources=(a,))]))
    lines = file.split("\n")
    assert [x for x in lines if x.startswith("#")] == ["## apis", "## checks"] and sum(x.startswith("- ") for x in lines) == 2
    assert sum("<!-- helpful=" in x and x.startswith("  <!--") for x in lines) == 2


def test_the_comment_shows_a_record_and_hides_its_dashes():
    bullet = Bullet("a-1", "apis", "x", 5, 1, 31, pinned=True, into="b--2", sources=("task 7", "a--b", "plain/task:3", "true"))
    text = comment(bullet, 4)
    assert text.startswith("<!-- helpful=5 harmful=1 exposures=31 status=active rev=0 created=4 into=") and text.count("--") == 2 and "source=plain/task:3" in text
    assert list(from_markdown(f"## apis\n{item(bullet)}\n  {text}\n").bullets) == [bullet]


@pytest.mark.parametrize("file, contents", [
    ("- [a-1] one\n", ["one"]), ("## apis\n\n- [a-1] one\n\n\n- [b-1] two\n\n", ["one", "two"]), ("- [a-1] one\n\ttwo\n", ["one\ntwo"]), ("- no id\n- another\n", ["no id", "another"]),
    ("- same\n- same\n", ["same"]), ("- [a-1] one\n- [a-1] another\n", ["one", "another"]), ("- [a-1]\n  one\n  <!-- helpful=1 -->\n", ["\none"]), ("", []), ("- [a-1] a\n  <!-- colour=red helpful=2 -->\n", ["a"]),
    ("---\nformat: playbook/1\nname: x\n---\n\n- [a-1] one\n", ["one"]), ("- [a-1] one\n  ```\n  - [b-1] two\n  ```\n", ["one\n```\n- [b-1] two\n```"])])
def test_what_a_person_may_write(file, contents): assert [b.content for b in from_markdown(file).active()] == contents


@pytest.mark.parametrize("file, line", [
    ("## apis\n\nSome words.\n", 3), ("- a\nwrapped\n", 2), ("- a\n  <!-- helpful=1 -->\n  more\n", 3), ("- [a-1] a\n  <!-- helpful=x -->\n", 1), ("- [a-1] a\n  <!-- helpful=-1 -->\n", 1),
    ("\n- [a-1] a\n  <!-- status=great -->\n", 2), ("## my rules\n- a\n", 2), ("---\nname: x\n---\n\noops\n", 5), ("- [a-1] a\n  <!-- source=\"\\u12\" -->\n", 1)])
def test_what_can_not_be_read_is_an_error_with_its_line(file, line):
    with pytest.raises(ValueError, match=f"^line {line}\\b"): from_markdown(file)


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="playbook/2"): from_markdown("---\nformat: playbook/2\n---\n")


@pytest.mark.parametrize("unit", ["- a b c d\n", "  <!--\n", "<!--", "-->  ", "[", "\\", '"', "## ", "&#1;", "\n"])
def test_reading_takes_time_in_proportion(unit):
    def seconds(n):
        file = "- [a-1] x\n  " + unit * (n // len(unit)) + '\n  <!-- helpful=1 source="' + unit.strip() * (n // len(unit)) + '" -->\n'
        start = time.perf_counter()
        try: from_markdown(file)
        except ValueError: pass
        return time.perf_counter() - start
    seconds(1000)
    assert min(seconds(200_000), seconds(200_000)) < 20 * max(seconds(25_000), 0.01)


OFFICE, _ = apply(Playbook(), Delta([Op("ADD", section=s, content=f"Rule {i}.") for i, s in enumerate(["apis", "apis", "checks", "others"])], "s"))


@calm
@given(st.data())
def test_a_hand_edit_applied_to_its_base_gives_what_the_file_says(data):
    rows = []
    for b in OFFICE.bullets:
        if data.draw(st.integers(0, 3)):
            content = b.content + data.draw(st.sampled_from(["", " Always.", "\n```\nx  y\n```", "  "]))
            rows.append(Bullet(b.id, data.draw(st.sampled_from([b.section, b.section, "clues"])), content, data.draw(st.integers(0, 2)), 0, 0, data.draw(st.sampled_from(["active", "quarantined", "retired"])),
                               pinned=False))
    rows += [Bullet(f"new-{i}", data.draw(st.sampled_from(SECTIONS)), f"New {i} {data.draw(st.integers(0, 9))}.") for i in range(data.draw(st.integers(0, 2)))]
    mine = from_markdown(to_markdown(Playbook(rows)))
    delta = diff(OFFICE, mine)
    after, report = apply(OFFICE, delta)
    said = lambda p: sorted((b.section, cleaned(b.content), b.status) for b in p.bullets if b.live)
    assert not report.rejected and said(after) == said(mine)
    assert all(after.get(b.id).helpful >= b.helpful for b in OFFICE.bullets)
    assert not diff(after, from_markdown(to_markdown(after))).ops and not diff(after, from_markdown(to_markdown(after, tombstones=False))).ops


def test_a_hand_edit_against_the_version_it_was_made_from_loses_nothing():
    a, b, *_ = (x.id for x in OFFICE.active())
    newest, _ = apply(OFFICE, Delta([Op("ADD", section="apis", content="Newer."), Op("TAG", id=a, helpful=2), Op("UPDATE", id=b, content="Rule 1, corrected.", expect=0)], "t"))
    file = to_markdown(OFFICE).replace("Rule 0.", "Rule zero.").replace("Rule 1.", "Rule one.")
    after, report = apply(newest, diff(OFFICE, from_markdown(file)))
    assert [op.kind for op, _ in report.conflicts] == ["UPDATE"] and after.get(a).content == "Rule zero." and after.get(a).helpful == 2
    assert after.get(b).content == "Rule 1, corrected." and any(x.content == "Newer." for x in after.active())


def test_the_same_edit_at_another_version_is_another_delta():
    gone = from_markdown(to_markdown(Playbook(list(OFFICE.active())[1:])))
    once, _ = apply(OFFICE, diff(OFFICE, gone))
    back, _ = apply(once, Delta([Op("ADD", section="apis", content="Rule 0.", revive=True)], "t"))
    again, report = apply(back, diff(back, gone))
    assert not report.replayed and len(again) == len(once) == 3


def test_counters_never_go_down_by_hand_and_pins_follow():
    a = OFFICE.active()[0].id
    loved, _ = apply(OFFICE, Delta([Op("TAG", id=a, helpful=5, harmful=2)], "t"))
    file = to_markdown(loved).replace("helpful=5 harmful=2", "helpful=0 harmful=9").replace("rev=0 created=0", "rev=0 created=0 pinned=yes", 1)
    after, report = apply(loved, diff(loved, from_markdown(file)))
    assert not report.rejected and (after.get(a).helpful, after.get(a).harmful, after.get(a).pinned) == (5, 9, True)


def test_save_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path/"p.md"
    save(path, "old")
    for name in ("fsync", "replace"):
        def no(*args): raise OSError("gone")
        with monkeypatch.context() as m:
            m.setattr(os, name, no)
            with pytest.raises(OSError): save(path, "new")
        assert path.read_text() == "old" and os.listdir(tmp_path) == ["p.md"]
    order = []
    def told(name, real): return lambda *args: (order.append(name), real(*args))[1]
    for name in ("fsync", "replace"): monkeypatch.setattr(os, name, told(name, getattr(os, name)))
    save(path, "new\r\nline")
    assert path.read_bytes() == b"new\r\nline" and order == ["fsync", "replace", "fsync"]
