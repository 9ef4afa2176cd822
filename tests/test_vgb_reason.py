"""Countdown and the forest: the checker against brute force, every prefix read once, costs that add up, the GPU's experiments at the size of a smoke test."""
import itertools, math
from dataclasses import replace
from fractions import Fraction
import pytest, torch
from llmwatch_course.foundations.decoder import Config as Sizing
from llmwatch_course.foundations.decoder import Decoder
from llmwatch_course.vgb import forest as trees
from llmwatch_course.vgb import measure, reason
from llmwatch_course.vgb.baselines import smc_law
from llmwatch_course.vgb.exact import action_level, first_leaf, later_leaf, total_variation
from llmwatch_course.vgb.forest import Forest, Judge, Lab, balanced, beam, blocks, bracket_words, rollouts, smc, walk, whole_tree
from llmwatch_course.vgb.reason import Countdown, Sizes, check, solvable

CPU, H, VOCAB = torch.device("cpu"), 4, 4


@pytest.fixture(scope="module")
def lab():
    g = torch.Generator().manual_seed(0)
    model = Decoder(Sizing(channels=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=16, vocab=VOCAB, context=16)).initialise(g).double().requires_grad_(False).eval()
    model.norm.weight.mul_(4)
    torch.manual_seed(0)
    judge = Judge(16, VOCAB, 8).double().requires_grad_(False)
    return Lab(model, judge, lambda prompts, texts: texts.sum(1) % 3 != prompts[:, 0] % 3, H)


def gen(seed=0): return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- countdown

def right(task, target, numbers, text):
    "One derivation with fractions."
    free = list(numbers)
    for a, o, b, c in zip(*(iter(text),) * 4, strict=True):
        for x in (a, b):
            if x not in free: return False
            free.remove(x)
        if not task.largest < o <= task.largest + 4: return False
        if [Fraction(a + b), Fraction(a - b), Fraction(a * b), Fraction(a, b)][o - task.largest - 1] != c or not 1 <= c <= task.largest: return False
        free.append(c)
    return free == [target]

def test_checker_against_all_texts_of_a_tiny_puzzle():
    task = Countdown(numbers=2, high=3, largest=6)
    texts = torch.tensor(list(itertools.product(range(task.vocab), repeat=4)))
    for prompt in ([5, 3, 2], [1, 3, 2], [6, 2, 3], [2, 2, 1], [1, 2, 2], [4, 2, 2]):
        found = check(task, torch.tensor([prompt]).expand(len(texts), -1), texts)
        assert found.tolist() == [right(task, prompt[0], prompt[1:], t) for t in texts.tolist()]
        assert bool(found.any()) == solvable(tuple(prompt[1:]), prompt[0], task.largest)

def test_checker_on_derivations_and_spoilt_ones():
    for task in (Countdown(3, 8, 30), Countdown(4, 9, 60)):
        prompts, texts = task.problems(400, gen(1))
        g = gen(2)
        spoilt = torch.where(torch.rand(texts.shape, generator=g) < 0.05, torch.randint(task.vocab, texts.shape, generator=g), texts)
        assert check(task, prompts, texts).all()
        assert check(task, prompts, spoilt).tolist() == [right(task, q[0], q[1:], t) for q, t in zip(prompts.tolist(), spoilt.tolist(), strict=True)]

def test_puzzles_can_be_solved_and_tests_are_held_out():
    task = Countdown(3, 6, 20)
    test, answers = reason.draw_puzzles(task, 12, True, gen(3))
    assert check(task, test, answers).all() and reason.held_out(test).all() and len(test) == 12
    assert all(solvable(tuple(q[1:]), q[0], task.largest) for q in test.tolist())
    assert not reason.held_out(reason.draw_puzzles(task, 200, False, gen(3))[0]).any()
    assert not solvable((1, 1), 6, 20) and solvable((2, 3), 6, 20)

@pytest.mark.parametrize("call", [lambda: Countdown(1, 5, 9), lambda: Countdown(3, 10, 9), lambda: check(Countdown(), torch.ones(2, 4).long(), torch.ones(2, 4).long())])
def test_bad_puzzles_are_refused(call):
    with pytest.raises(ValueError): call()


# ---------------------------------------------------------------- the forest

def test_trie_gives_what_reading_the_whole_text_gives(lab):
    prompts = torch.tensor([[0, 1], [3, 2], [0, 1]])
    f = Forest(lab, prompts)
    nodes = rollouts(f, 5, gen())
    texts = f.nodes.text[nodes]
    for tree in range(3):
        whole = torch.cat([prompts[tree].expand(5, -1), texts[tree]], 1)
        logp = lab.model(whole[:, :-1])[:, 1:].log_softmax(-1).gather(2, texts[tree][..., None])[..., 0].sum(1)
        torch.testing.assert_close(f.nodes.log_ref[nodes[tree]], logp, rtol=0, atol=1e-9)
    assert torch.equal(f.good(nodes), lab.reward(prompts.repeat_interleave(5, 0), texts.flatten(0, 1)).view(3, 5))

def test_each_prefix_is_read_once_and_its_value_never_changes(lab):
    f, asked = None, []
    def judge(states):
        asked.append(len(states))
        return lab.judge(states) + 0.01 * torch.randn(1, generator=noise).double()      # a fickle one: only its first word counts
    noise = gen(7)
    f = Forest(replace(lab, judge=judge), torch.tensor([[0, 1], [2, 3]]))
    walk(f, gen(1), leaf=2)
    n = len(f.nodes)
    before = f.nodes.log_value[:n].clone()
    walk(f, gen(2), leaf=4); smc(f, 6, gen(3)); beam(f, 4)
    assert torch.equal(f.nodes.log_value[:n], before)
    assert sum(asked) == int(f.spent.sum()) == len(f.said)
    keys = [(int(t), tuple(x)) for t, x in zip(f.nodes.tree[:len(f.nodes)], f.nodes.text[:len(f.nodes)].tolist(), strict=True)]
    assert len(set(keys)) == len(keys)

def test_costs_add_up(lab):
    prompts = torch.tensor([[0, 1], [2, 3], [1, 1]])
    for sampler in (lambda f: rollouts(f, 3, gen()), lambda f: beam(f, 3), lambda f: smc(f, 3, gen())[0], lambda f: blocks(f, 2, 3, gen(), True)[:, None], lambda f: walk(f, gen(), 9)[0][:, None]):
        f = Forest(lab, prompts)
        nodes = sampler(f)
        assert f.slots == prompts.numel() + int(f.spent.sum()) - len(prompts) == f.cache[0].k.n
        assert (f.nodes.tree[nodes[nodes >= 0]] == torch.arange(3).repeat_interleave((nodes >= 0).sum(1))).all()
    assert (f.spent <= 9).all()

def test_samplers_have_the_exact_laws(lab):
    prompt, n = torch.tensor([[0, 1]]), 2000
    tree = whole_tree(Forest(lab, prompt), names="abcd")
    def law(nodes, f):
        code = (f.nodes.text[nodes] * 4**torch.arange(H - 1, -1, -1)).sum(-1)
        return torch.bincount(torch.where(nodes >= 0, code + tree.leaves[0], 0), minlength=len(tree.prob)).double() / len(nodes)
    def fresh(alpha=1.): return Forest(lab, prompt.expand(n, -1), alpha)
    f = fresh(); assert total_variation(law(rollouts(f, 1, gen(1), True)[:, 0], f), torch.where(tree.leaf, action_level(tree), 0.)) < 0.14
    quick = whole_tree(Forest(lab, prompt, 0.3), names="abcd")
    f = fresh(0.3); assert total_variation(law(walk(f, gen(2))[0], f), first_leaf(quick)) < 0.14
    f = fresh(0.3); assert total_variation(law(walk(f, gen(3), leaf=3)[0], f), later_leaf(quick, 3)[0]) < 0.14
    f = fresh(); picked = trees.chosen(*smc(f, 4, gen(4)), torch.rand(n, generator=gen(5), dtype=torch.float64))
    assert total_variation(law(picked, f), smc_law(tree, 4, 5000, gen(6))[0]) < 0.14

def test_greedy_is_the_best_token_each_time(lab):
    f = Forest(lab, torch.tensor([[0, 1]]))
    node = f.roots
    for _ in range(H):
        f.read(node)
        row = f.nodes.row[node]
        node = f.child(node, (f.said.logp[row] + f.said.log_values[row]).argmax(1))
    assert torch.equal(beam(f, 1)[0], node)
    wide = beam(Forest(lab, torch.tensor([[0, 1]])), VOCAB**H)
    tree = whole_tree(Forest(lab, torch.tensor([[0, 1]])), names="abcd")
    assert (wide >= 0).sum() == (tree.value[tree.leaf] > 0).sum()          # wide enough, it finds all

def test_bad_forests_are_refused(lab):
    with pytest.raises(ValueError, match="prompts must be"): Forest(lab, torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="alpha must be positive"): Forest(lab, torch.zeros(1, 2, dtype=torch.long), 0.)
    with pytest.raises(ValueError, match="positions"): Forest(lab, torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match="judge"): Forest(replace(lab, judge=lambda h: torch.full((len(h), VOCAB), math.nan)), torch.zeros(1, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="even"): bracket_words(3, 5, gen())


# ---------------------------------------------------------------- the experiments of scale gpu, tiny

def test_brackets():
    words = bracket_words(500, 20, gen())
    assert balanced(words).all() and (words >= 2).double().mean() > 0.7 and not balanced(words.flip(1)).all()

def test_reason_at_the_size_of_a_smoke_test():
    r = measure.measure_reason(replace(measure.Config.smoke(), reason=Sizes.smoke()), gen(), CPU)
    assert r.claim == "vgb-reason" and math.isfinite(r.value) and r.table[-1]["sampler"] == "walk" and "solved" not in r.table[0]
    assert {row["sampler"] for row in r.table} == {"greedy", "beam", "best of n", "action level", "SMC", "SMC, resampled always", "walk"}

def test_rivals_get_at_least_the_tokens_of_the_walk():
    rows = [{"sampler": "beam", "tokens": t, "success": t / 100, "solved": torch.arange(10) < t / 10} for t in (10., 20., 40.)]
    ours = {"sampler": "walk", "tokens": 15., "success": 0.5, "solved": torch.arange(10) < 5}
    value, beside = reason.verdict([*rows, ours], 30, gen())
    assert abs(value - 0.3) < 1e-12 and beside["beam, tokens"] == 20 and abs(beside["difference at full budget"] - 0.1) < 1e-12
    assert beside["interval, low"] <= value <= beside["interval, high"]

def test_brackets_with_a_transformer_at_the_size_of_a_smoke_test():
    rows, shown = measure.measure_brackets(replace(measure.Config.smoke(), brackets=measure.Brackets.smoke()), gen(), CPU)
    assert math.isfinite(shown["transformer, ratio"]) and 0 <= shown["transformer, walks that nothing beats"] <= 1
    assert any("ratio" in r for r in rows) and any("accuracy" in r for r in rows)

def test_gpu_configuration_has_what_the_task_asks_for():
    config = measure.Config.gpu()
    assert config.brackets.length == 32 and config.brackets.prompts * config.brackets.copies == 4096 and config.texts >= 1024 and config.tokens == 32
    assert config.reason.task.numbers == 4 and measure.Config.small().reason is None and measure.Config.small().brackets is None
