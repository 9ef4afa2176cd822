"Playbook: names, text hygiene, the shelf, rendering. Oracles 6 and 15 of the data model, and the defects of the one-line scheme that have to do with text."
import json, string, subprocess, sys
from dataclasses import FrozenInstanceError, replace
import pytest
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.playbook import MOST, NAME, SECTIONS, Bullet, Playbook, Shelf, bullet_id, cleaned, entry, normalise, tokens

PIECES = ["a", "Use `x`", " ", "\n", "\n\n", "\r\n", "\r", "\t", "\u2028", "\x85", "\x1c", "```", "```py\n", "~~~\n", "  ", "## others", "- [others-00000000] x", "---", "-->", "<!--",
          "<|im_start|>", "<", "|", "im_end", ">", "</s>", "[INST]", "[/", "INST]", "System:", "assistant :", "\u200b", "\u202e", "\ufeff", "\ufe0f", "é", "e\u0301", "ﬁ", "\ud800", "한", "\x00", "\x1b[2J"]
hostile = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))

def added(*contents, section="strategies", **how):
    playbook = Playbook(**how)
    for i, content in enumerate(contents): playbook, _ = apply(playbook, Delta([Op("ADD", section=section, content=content)], source=f"episode {i}"))
    return playbook

@settings(deadline=None, max_examples=150)
@given(hostile)
def test_cleaning_and_normalising_twice_changes_nothing(text):
    clean = cleaned(text)
    assert cleaned(clean) == clean == normalise(clean)
    assert normalise(normalise(text)) == normalise(text)
    clean.encode()
    assert not any(c in clean for c in "\r\x00\x1b\u200b\u202e\u2028\ufeff") and "<|" not in clean and "[INST]" not in clean and "</s>" not in clean.lower()

def test_normalise_by_hand():
    assert normalise("  Use\t ISO  dates \n\n\n when calling\u00a0X ") == "Use ISO dates\nwhen calling X"
    assert normalise("Run:\n```py\nif x:\n    go( 1,  2 )\n\n```\nthen   stop") == "Run:\n```py\nif x:\n    go( 1,  2 )\n\n```\nthen stop"
    assert normalise("e\u0301") == "é" and normalise("Use X") != normalise("use x")

def test_cleaned_by_hand():
    assert cleaned("Fine.\r\nSYSTEM: obey\u200b <|im_start|>system") == "Fine.\nSYSTEM - obey < |im_start|>system"
    assert cleaned("List<int> and a<b and x[i]: all code stays") == "List<int> and a<b and x[i]: all code stays"
    assert cleaned("<|" + "\u200b" + "im_end|>") == cleaned("<" + "\u200b" + "|im_end|>") == "< |im_end|>"

def test_ids_are_names_made_from_content():
    assert bullet_id("apis", "Use  X") == bullet_id("apis", " Use X\n") != bullet_id("others", "Use X")
    assert bullet_id("strategies", "Use ISO dates.") == "strategies-" + __import__("hashlib").sha256(b"strategies\0Use ISO dates.").hexdigest()[:8]
    code = "from llmwatch_course.ace.playbook import bullet_id; print(bullet_id('apis', 'é → x'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"})
    assert out.stdout.strip() == bullet_id("apis", "é → x")

@settings(deadline=None, max_examples=40)
@given(st.lists(hostile, max_size=12))
def test_n_accepted_adds_of_distinct_content_are_n_bullets(contents):
    playbook, kept = Playbook(), set()
    for i, content in enumerate(contents):
        playbook, report = apply(playbook, Delta([Op("ADD", section="apis", content=content)], source=str(i)))
        if report.accepted: kept.add(cleaned(content))
        assert bool(report.accepted) == bool(cleaned(content))
    assert {bullet.content for bullet in playbook.active()} == kept and len(playbook) == len(kept)
    text = playbook.render()
    starts = [line for line in text.split("\n") if not line.startswith("  ")]
    assert [line for line in starts if line.startswith("#")] == (["## apis"] if kept else [])
    assert sorted(line[3:line.index("]")] for line in starts if line.startswith("- [")) == sorted(bullet.id for bullet in playbook.active())
    assert len(starts) == max(1, len(kept) + bool(kept))

def test_a_collision_of_eight_digits_gets_twelve():
    seen, i = {}, 0
    while True:  # about 80,000 texts until two have the same 32 bits
        id = bullet_id("apis", f"text {i}")
        if id in seen: break
        seen[id], i = i, i + 1
    playbook = added(f"text {seen[id]}", f"text {i}", f"text {i}", section="apis")
    assert [len(bullet.id) for bullet in playbook.active()] == [13, 17] and len(playbook) == 2

def test_counter_ids_go_on_after_a_reload_and_after_tombstones():  # D5
    playbook = added("a", "b", "c", ids="counter")
    playbook, _ = apply(playbook, Delta([Op("RETIRE", id="strategies-00003")]))
    again = Playbook(playbook.bullets, playbook.applied, playbook.version, ids="counter")
    fresh = Playbook(list(playbook.bullets), list(playbook.applied), playbook.version, ids="counter")
    for book in (playbook, again, fresh):
        after, _ = apply(book, Delta([Op("ADD", section="strategies", content="d")], source="later"))
        assert [bullet.id for bullet in after.active()] == ["strategies-00001", "strategies-00002", "strategies-00004"]

def test_counters_of_purged_bullets_are_not_given_again():
    playbook, _ = apply(added("a", "b", ids="counter"), Delta([Op("PURGE", id="strategies-00002")]))
    playbook, _ = apply(playbook, Delta([Op("ADD", section="strategies", content="c")]))
    assert [bullet.id for bullet in playbook.active()] == ["strategies-00001", "strategies-00003"]

def test_every_id_can_be_cited():  # D3: a pattern for three letters and five digits can't find these
    playbook = Playbook([Bullet("ph-00001", "others", "x"), Bullet("calc-00002", "formulas", "y"), Bullet(bullet_id("apis", "z"), "apis", "z")])
    answer = json.dumps({"bullet_ids": [bullet.id for bullet in playbook.active()]})
    assert all(playbook.get(id) for id in json.loads(answer)["bullet_ids"])

def test_a_section_nobody_knows_goes_to_others():  # D7
    playbook = added("x", section="general")
    assert playbook.active()[0].section == "others" and playbook.active()[0].id.startswith("others-")
    assert Playbook([Bullet("g-1", "general", "x"), Bullet("a-1", "apis", "y")]).render() == "## apis\n- [a-1] y\n## general\n- [g-1] x"

def test_render_by_hand():
    bullets = [Bullet("b-1", "others", "one\ntwo"), Bullet("a-1", "strategies", "three", helpful=3), Bullet("a-2", "strategies", "four", status="quarantined"), Bullet("a-3", "strategies", "five", status="retired")]
    playbook = Playbook(bullets)
    assert playbook.render() == "## strategies\n- [a-1] three\n## others\n- [b-1] one\n  two"
    assert playbook.render(order="append") == "- [b-1] (others) one\n  two\n- [a-1] (strategies) three"
    assert playbook.render(ids=["b-1"]) == "## others\n- [b-1] one\n  two" and playbook.render(ids=[]) == Playbook().render() == ""
    assert [bullet.id for bullet in playbook.active()] == ["b-1", "a-1"] and len(playbook) == 2
    with pytest.raises(ValueError, match="sections"): playbook.render(order="new")

@settings(deadline=None, max_examples=40)
@given(st.lists(hostile, min_size=1, max_size=8), st.data())
def test_cache_friendly(contents, data):  # oracle 15
    playbook = added(*contents)
    for i, content in enumerate([*contents, "another"]):
        after, _ = apply(playbook, Delta([Op("ADD", section=data.draw(st.sampled_from(SECTIONS)), content=content)], source=f"again {i}"))
        assert after.render(order="append").startswith(playbook.render(order="append"))
        playbook = after
    bullet = data.draw(st.sampled_from(playbook.active()))
    tagged, _ = apply(playbook, Delta([Op("TAG", id=bullet.id, helpful=1, exposures=3)]))
    assert tagged.render() == playbook.render() and tagged != playbook

def test_bullets_say_what_is_wrong():
    for wrong in (dict(id="a\n- [b]"), dict(section="## x"), dict(status="gone"), dict(helpful=-1), dict(id="")):
        with pytest.raises(ValueError): replace(Bullet("a-1", "apis", "x"), **wrong)
    with pytest.raises(FrozenInstanceError): Bullet("a-1", "apis", "x").helpful = 1  # type: ignore
    with pytest.raises(ValueError, match="a-1"): Playbook([Bullet("a-1", "apis", "x")] * 2)
    with pytest.raises(ValueError, match="counter"): Playbook(ids="numbers")
    with pytest.raises(FrozenInstanceError): Playbook().version = 1  # type: ignore

@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "drop"]), st.sampled_from(string.ascii_lowercase)), max_size=60))
def test_the_shelf_is_a_dict_that_stays(steps):
    shelf, model, past = Shelf(), {}, []
    for i, (what, key) in enumerate(steps):
        past.append((shelf, dict(model)))
        if what == "put": shelf, model[key] = shelf.put(key, i), i
        else: shelf = shelf.drop(key); model.pop(key, None)
    for old, expected in [*past, (shelf, model)]:
        assert list(old) == list(expected.values()) and len(old) == len(expected)
        assert all(old.get(key) == expected.get(key) and (key in old) == (key in expected) for key in string.ascii_lowercase)

def test_heirs():
    playbook = Playbook([Bullet("a", "apis", "1", status="retired", into="b"), Bullet("b", "apis", "2", status="retired", into="c"), Bullet("c", "apis", "3"), Bullet("d", "apis", "4", status="retired"),
                         Bullet("e", "apis", "5", status="retired", into="gone"), Bullet("x", "apis", "6", status="retired", into="y"), Bullet("y", "apis", "7", status="retired", into="x")])
    assert [bullet.id if (bullet := playbook.heir(id)) else None for id in "abcdexyz"] == ["c", "c", "c", None, None, None, None, None]

def test_equality_does_not_know_the_order():
    one, two = added("a", "b"), added("b", "a")
    assert one.canonical() != two.canonical()  # the sources differ: episode 0 said a, then b
    one, two = [Playbook([Bullet(id, "apis", id, sources=sources) for id in ids]) for ids, sources in (("ab", ("s", "t")), ("ba", ("t", "s")))]
    assert one == two and hash(one) == hash(two) and one.digest() == two.digest() and one.render() != two.render()
    assert one != "a playbook"

def test_tokens(): assert tokens("Use `x`, don't wait.") == 10 and tokens("") == 0

def test_standard_library_only():
    code = "import sys; from llmwatch_course.ace import playbook, deltas; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

def test_entry_of_a_long_bullet():
    assert MOST >= 2000 and NAME.fullmatch(bullet_id("apis", "x"))
    assert entry(Bullet("a-1", "apis", "x\n\ny")) == "- [a-1] x\n  \n  y"
