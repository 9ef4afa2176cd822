"""The token world: dice, queries, tools."""
import itertools
import pytest
import torch
from llmwatch_course.agents import world as w

N = 300

def test_dice_are_functions_of_their_names():
    whole = w.dice(5, torch.arange(N)[:, None], torch.arange(4))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    assert torch.equal(w.dice(5, order[:, None], torch.arange(4)), whole[order])
    assert torch.equal(w.dice(5, 17, torch.tensor(2)), whole[17, 2])
    assert whole.dtype == torch.float64 and (whole >= 0).all() and (whole < 1).all() and len(whole.unique()) == 4 * N

def test_dice_hang_on_each_name_and_its_place():
    assert len({float(w.dice(*keys)) for keys in itertools.permutations((1, 2, 3))}) == 6
    assert len({float(w.dice(*keys)) for keys in ((0,), (0, 0), (0, 0, 0), (1,), (-1,))}) == 5

def test_mixed_is_splitmix64():
    def slow(x):
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31
    x = torch.randint(-2**63, 2**63 - 1, (500,), generator=torch.Generator().manual_seed(1))
    assert [v % 2**64 for v in w.mixed(x).tolist()] == [slow(v % 2**64) for v in x.tolist()]

def test_dice_are_even():
    rolls = w.dice(3, torch.arange(50_000), 1)
    count = torch.histc(rolls.float(), 20, 0, 1)
    assert ((count - 2500)**2 / 2500).sum() < 19 + 6 * 38**.5

@pytest.mark.parametrize("seed", (0, 1, 12345))
def test_truth_is_the_definition(seed):
    q = w.draw(N, seed)
    for i in range(N):
        kind, at = w.KINDS[q.kind[i]], int(q.first[i])
        if kind == "sum": want = q.value[i, at] + q.value[i, q.second[i]]
        else:
            for _ in range(int(kind[3])): at = int(q.boss[i, at])
            want = q.value[i, at]
        assert q.truth[i] == want
    assert (q.boss != torch.arange(w.ENTITIES)).all() and (q.second != q.first).all()
    assert q.value.min() == 0 and q.value.max() == 9 and q.boss.min() == 0 and q.boss.max() == w.ENTITIES - 1

def test_queries_do_not_depend_on_how_many():
    assert all(torch.equal(a, b[:7]) for a, b in zip(w.draw(7, 3), w.draw(90, 3)))
    assert not torch.equal(w.draw(7, 3).value, w.draw(7, 4).value) and len(torch.cat([w.draw(50, s).key for s in range(9)]).unique()) == 450

def test_kinds_are_drawn_as_asked():
    assert set(w.draw(200, 0, ("hop2",)).kind.tolist()) == {2}
    share = torch.bincount(w.draw(4000, 0, ("hop0", "sum", "sum", "sum")).kind, minlength=5) / 4000
    assert abs(share[0] - .25) < .04 and abs(share[4] - .75) < .04
    with pytest.raises(ValueError, match=r"unknown kind of query 'hop9'; did you mean 'hop"): w.draw(3, 0, ("hop9",))

def test_take_and_repeat():
    q = w.draw(5, 0)
    assert q.repeat(3).key.tolist() == [k for k in q.key.tolist() for _ in range(3)]
    assert q.take(torch.tensor([4, 0])).truth.tolist() == [int(q.truth[4]), int(q.truth[0])]
    assert all(torch.equal(a, b) for a, b in zip(q.to("cpu"), q))

def test_words():
    assert len(set(w.WORDS)) == len(w.WORDS) == 47 and [w.WORDS[i] for i in range(10)] == ["search", "wiki", "calc", "guess", "answer", "BOSS", "VALUE", "-", "failed", "bad"]
    assert w.words(w.question(w.draw(1, 0, ("sum",)))[0]).split()[0] == "sum"
    assert w.question(w.draw(40, 0))[:, 3].unique().tolist() == [w.ACT] == [len(w.WORDS) - 1]
    hops = w.question(w.draw(40, 0, w.KINDS[:4]))
    assert (hops[:, 2] == w.NONE).all()

def by_hand(q, i, action, luck, blind, rules):
    tool, a, b = (w.WORDS[t] for t in action)
    if tool in ("search", "wiki") and a in ("BOSS", "VALUE") and b in "ABCDEFGHIJKL":
        if luck >= getattr(rules, tool)[a == "VALUE"]: return "failed"
        e = "ABCDEFGHIJKL".index(b)
        return "ABCDEFGHIJKL"[q.boss[i, e]] if a == "BOSS" else str(int(q.value[i, e]))
    if tool == "calc" and all(x.isdigit() and int(x) < 10 for x in (a, b)): return str(int(a) + int(b)) if luck < rules.calc else "failed"
    if (tool, a, b) == ("guess", "-", "-"): return str(int(blind * (19 if w.KINDS[q.kind[i]] == "sum" else 10)))
    return "bad"

@pytest.mark.parametrize("rules", (w.HERE, w.ELSEWHERE, w.Rules((1., 0.), (0., 1.), 1.)))
def test_call_is_its_table(rules):
    "Every tool with all pairs of words, at several lucks."
    q, actions = w.draw(50, 2), torch.cartesian_prod(torch.arange(6), torch.arange(len(w.WORDS)), torch.arange(len(w.WORDS)))
    rows = torch.arange(len(actions)) % 50
    luck, blind = w.dice(1, torch.arange(len(actions))), w.dice(2, torch.arange(len(actions)))
    said = w.call(q.take(rows), actions, luck, blind, rules)
    assert [w.WORDS[s] for s in said] == [by_hand(q, int(i), a, x, y, rules) for i, a, x, y in zip(rows, actions.tolist(), luck.tolist(), blind.tolist())]

def test_words_that_are_no_tools_are_bad():
    q = w.draw(1, 0)
    for token in range(len(w.TOOLS) - 1, len(w.WORDS)):
        action = torch.tensor([[token, w.BOSS, w.A]])
        assert w.call(q, action, torch.zeros(1), torch.zeros(1)) == w.BAD

def test_guesses_stay_in_their_range():
    for kind, most in (("hop1", 9), ("sum", 18)):
        q = w.draw(2000, 0, (kind,))
        action = torch.tensor([[w.GUESS, w.NONE, w.NONE]]).expand(2000, 3)
        said = w.call(q, action, torch.ones(2000), w.dice(0, q.key)) - w.ZERO
        assert said.min() == 0 and said.max() == most

def test_the_two_worlds_differ_only_in_the_search_tools():
    assert w.HERE.search == w.ELSEWHERE.wiki and w.HERE.wiki == w.ELSEWHERE.search and w.HERE.calc == w.ELSEWHERE.calc
