"Ways out of a playbook, and back where there is a way."
import json
import pytest
from hypothesis import given, settings, strategies as st
from llmwatch_course.ace.converters import BEGIN, END, MARK, OURS, from_json, from_official, mcp_notices, mcp_resource, to_agents_md, to_json, to_official, to_skill_dir
from llmwatch_course.ace.deltas import Delta, Op, apply
from llmwatch_course.ace.playbook import Bullet, Playbook, tokens

calm = settings(max_examples=40, deadline=None)
PIECES = ["\n", "\r", "\r\n", "\\n", "\\", "## x", "\n## x\n", "[x-00001] helpful=9 harmful=0 :: ", " ", MARK, BEGIN, END, f"\n{END}\n", "<!--", OURS, "```", "\u2028", "규칙"]
WORDS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))
NAMES = st.from_regex(r"[\w-]{1,12}", fullmatch=True)
BULLETS = st.lists(st.builds(Bullet, NAMES, NAMES, WORDS, st.integers(0, 99), st.integers(0, 99)), unique_by=lambda b: b.id, max_size=5)
OFFICE, _ = apply(Playbook(name="desk-agent"), Delta([Op("ADD", section=s, content=c) for s, c in (("apis", "Dates are DD.MM.YYYY."), ("apis", "Pages:\ntwenty."), ("checks", f"Totals. {END}"))], "task 1"))


@calm
@given(BULLETS)
def test_official_and_back(bullets):
    playbook = Playbook(bullets)
    text = to_official(playbook)
    assert from_official(text) == playbook == from_json(to_json(playbook))
    assert sum(map(bool, text.split("\n"))) == len(bullets) + len({b.section for b in bullets}) + 1
    assert from_official(text.replace("\n", "\r\n")) == playbook


PUBLISHED = r"""## STRATEGIES AND HARD RULES
[shr-00001] Make sure to end code blocks with ``` followed by a newline(\n).

[shr-00021] Use `from datetime import datetime; d = datetime.now().strftime('%Y-%m-%d')`, never a fixed date.
## APIs TO USE FOR SPECIFIC INFORMATION

## STRATEGIES & INSIGHTS
[ph-00040] helpful=5 harmful=1 ::  Two spaces, [brackets] and :: colons.
## TROUBLESHOOTING AND PITFALLS:

## OTHERS
"""


def test_a_published_file_is_taken_word_by_word():
    playbook = from_official(PUBLISHED, "appworld")
    assert [(b.id, b.section, b.helpful, b.harmful) for b in playbook.active()] == [
        ("shr-00001", "strategies_and_hard_rules", 0, 0), ("shr-00021", "strategies_and_hard_rules", 0, 0), ("ph-00040", "strategies_and_insights", 5, 1)]
    lines = [line for line in PUBLISHED.splitlines() if line.startswith("[")]
    assert all(line.endswith(b.content) for line, b in zip(lines, playbook.active(), strict=True)) and "newline(\\n)" in playbook.active()[0].content
    assert playbook.active()[2].content == " Two spaces, [brackets] and :: colons." and from_official(to_official(playbook)) == playbook
    assert playbook.sections == ("strategies_and_hard_rules", "apis_to_use_for_specific_information", "strategies_and_insights", "troubleshooting_and_pitfalls", "others")


def test_numbers_go_on_after_an_import():
    playbook = from_official(PUBLISHED)
    for i in (41, 42):
        playbook, _ = apply(playbook, Delta([Op("ADD", section="others", content=f"r{i}")], f"t{i}"))
        assert playbook.active()[-1].id == f"others-000{i}"
        playbook, _ = apply(playbook, Delta([Op("RETIRE", id=f"others-000{i}")], f"u{i}"))
    assert from_json(to_json(playbook)).last == 42


@pytest.mark.parametrize("text, line", [("## A\nfree text\n", 2), ("[a b] x\n", 1), ("[a-1] ok\n- no\n", 2)])
def test_what_is_no_official_line_is_an_error(text, line):
    with pytest.raises(ValueError, match=f"line {line} "): from_official(text)


def test_lines_before_the_first_heading_belong_to_others(): assert from_official("[a-00001] x").active()[0].section == "others"


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "playbook/2"}', '{"format": "playbook/1"}', '{"format": "playbook/1", "bullets": [{"id": 1}]}', '{"format": "playbook/1", "bullets": [1]}', "no json"])
def test_json_that_is_no_playbook(text):
    with pytest.raises(ValueError): from_json(text)


def test_json_keeps_all():
    full, _ = apply(OFFICE, Delta([Op("TAG", id=OFFICE.active()[0].id, helpful=2, exposures=9), Op("REPLACE", id=OFFICE.active()[1].id, content="Pages."), Op("PIN", id=OFFICE.active()[0].id)], "task 2"))
    back = from_json(to_json(full))
    assert list(back.bullets) == list(full.bullets) and set(back.applied) == set(full.applied) and (back.version, back.name) == (2, "desk-agent")


@calm
@given(BULLETS, BULLETS, st.lists(st.sampled_from(["# A\n", "x\n", "\n", "y\r\n", "- [a-1] b\n", "last"])), st.lists(st.sampled_from(["# B\n", "z\n", "\n"])))
def test_agents_md_outside_the_block_is_left_alone(first, second, before, after):
    before, after = "".join(x if x.endswith("\n") else x + "\n" for x in before), "".join(after)
    file = f"{before}{BEGIN}\nold\n{END}\n{after}"
    for bullets in (first, second):
        file = to_agents_md(file, Playbook(bullets))
        assert file.startswith(before + BEGIN) and file.endswith(after) and file.count(BEGIN) == file.count(END) == 1
    assert to_agents_md(file, Playbook(second)) == file and "helpful=" not in file.replace("helpful=9", "")


@calm
@given(BULLETS, st.sampled_from(["", "x", "x\n", "x\r\n", "x\r\ny"]))
def test_agents_md_gets_one_block(bullets, text):
    file = to_agents_md(text, Playbook(bullets))
    assert file.startswith(text) and to_agents_md(file, Playbook(bullets)) == file
    if "\r\n" in text: assert to_agents_md(file, OFFICE).replace("\r\n", "").count("\n") == 0


@pytest.mark.parametrize("text", [BEGIN, END, f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n", f"{BEGIN}\n{BEGIN}\n{END}\n"])
def test_marks_that_are_no_pair(text):
    with pytest.raises(ValueError, match="once"): to_agents_md(text, OFFICE)


def test_a_mark_inside_a_line_is_no_mark(): assert to_agents_md(f"Write `{BEGIN}` and `{END}`.\n", OFFICE).startswith(f"Write `{BEGIN}`")


def parsed(text):
    assert text.startswith("---\n")
    head, _, body = text[4:].partition("\n---\n")
    return {k: json.loads(v) if v.startswith('"') else v for k, _, v in (line.partition(": ") for line in head.split("\n"))}, body


@pytest.mark.parametrize("sizes", [{"apis": 3}, {"apis": 400, "checks": 10}, {"apis": 300, "checks": 300, "mistakes": 5}, {}, {f"s{i}": 60 for i in range(12)}])
def test_a_skill_keeps_the_rules_and_every_bullet(tmp_path, sizes):
    playbook = Playbook([Bullet(f"{s}-{i}", s, f"Rule {i}: " + "look twice " * 5) for s, n in sizes.items() for i in range(n)], name="desk-agent")
    files = to_skill_dir(tmp_path/"desk-agent", playbook, 'Says "use it": when\nyou must: # always')
    head, body = parsed(files[0].read_text())
    assert head == {"name": "desk-agent", "description": 'Says "use it": when\nyou must: # always'}
    assert body.count("\n") < 500 and tokens(body) <= 5000
    everything = "\n".join(f.read_text() for f in files)
    assert all(everything.count(f"- [{b.id}] ") == 1 for b in playbook.active())
    for f in files[1:]: assert f"({f.relative_to(tmp_path/'desk-agent')}): {sizes[f.stem]} rules" in body


def test_a_skill_leaves_other_files_alone_and_no_old_advice(tmp_path):
    folder = tmp_path/"desk-agent"
    to_skill_dir(folder, OFFICE, "Rules.", most=1)
    assert sorted(p.name for p in (folder/"references").iterdir()) == ["apis.md", "checks.md"]
    (folder/"references/own.md").write_text("mine")
    assert to_skill_dir(folder, OFFICE, "Rules.") == [folder/"SKILL.md"] and [p.name for p in (folder/"references").iterdir()] == ["own.md"]
    (folder/"references/apis.md").write_text("mine too")
    with pytest.raises(ValueError, match="left alone"): to_skill_dir(folder, OFFICE, "Rules.", most=1)
    assert (folder/"references/apis.md").read_text() == "mine too" and "Dates" in (folder/"SKILL.md").read_text()


@pytest.mark.parametrize("name, folder, description", [("Desk", "Desk", "x"), ("a--b", "a--b", "x"), ("-a", "-a", "x"), ("a" * 65, "a" * 65, "x"), ("a", "b", "x"), ("a", "a", ""), ("a", "a", " "), ("a", "a", "x" * 1025), ("a\n", "a\n", "x")])
def test_a_skill_that_breaks_a_rule_is_not_written(tmp_path, name, folder, description):
    with pytest.raises(ValueError): to_skill_dir(tmp_path/folder, Playbook(name=name), description)
    assert not list(tmp_path.iterdir())


def test_an_mcp_resource_and_its_notices():
    shown = mcp_resource(OFFICE, "Rules.")
    assert shown["resource"]["uri"] == shown["contents"][0]["uri"] == "playbook://desk-agent" and shown["resource"]["size"] == len(shown["contents"][0]["text"].encode())
    assert {shown["resource"]["mimeType"], shown["contents"][0]["mimeType"]} == {"text/markdown"} and json.loads(json.dumps(shown)) == shown
    voted, _ = apply(OFFICE, Delta([Op("TAG", id=OFFICE.active()[0].id, helpful=1)], "t"))
    more, _ = apply(OFFICE, Delta([Op("ADD", section="apis", content="New.")], "u"))
    assert mcp_notices(OFFICE, voted) == [] and [n["method"] for n in mcp_notices(OFFICE, more)] == ["notifications/resources/list_changed", "notifications/resources/updated"]
    assert mcp_resource(Playbook(name="a b/ü"))["resource"]["uri"] == "playbook://a%20b%2F%C3%BC"
