"""Legality by brute force, exact laws by another road, learned guides, and the comparison of letter avoidance."""
import itertools, math
import pytest, torch
from torch.testing import assert_close

from llmwatch_course.vgb.exact import action_level, expected_steps, first_leaf, later_leaf, neighbour_weights, stationary, total_variation
from llmwatch_course.vgb.tree import abc, dyck, guided
from llmwatch_course.vgb.verifiers import (Texts, Writing, advantage, avoiding, beam, best_at, bigram, closable, constrained, distinct2,
                                           learn, legal_guide, letter_avoidance, one_hot, random_writing, rollouts, set_temperature, verifier_error)

def generator(seed=0): return torch.Generator().manual_seed(seed)

def test_legality_by_enumeration():
    tree = dyck(6)
    def good(word): return all(word[:i].count("(") >= word[:i].count(")") for i in range(7)) and word.count("(") == 3
    finished = [w for w in map("".join, itertools.product("()", repeat=6)) if good(w)]
    for node, ok in enumerate(closable(tree).tolist()): assert ok == any(w.startswith(tree.word(node)) for w in finished)
    language = bigram(4)
    for node, ok in enumerate(avoiding(language, 3).tolist()): assert ok == ("e" not in language.word(node))

def dense_first_leaf(tree):
    "Law and steps from the absorbing chain, by linear algebra on live inner nodes only: no conductances, no recursion."
    weights = neighbour_weights(tree)
    P = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for node in range(len(weights)):
        for column, to in enumerate([int(tree.parent[node]), *tree.children[node].tolist()]):
            if to >= 0: P[node, to] += weights[node, column]
    live = tree.open & ~tree.leaf
    P = P / P.sum(1, keepdim=True).clamp(min=1e-300)
    visits = torch.linalg.solve((torch.eye(int(live.sum()), dtype=P.dtype) - P[live][:, live]).T, torch.eye(int(live.sum()), dtype=P.dtype)[0])
    return visits @ P[live], float(visits.sum())

@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_laws_on_the_bigram_by_linear_algebra(alpha):
    tree = legal_guide(bigram(3), avoiding(bigram(3), 3), alpha)
    law, steps = dense_first_leaf(tree)
    assert_close(first_leaf(tree)[tree.leaf], law[tree.leaf], atol=1e-12, rtol=0)
    assert abs(expected_steps(tree) - steps) < 1e-9 * steps

def test_bigram_numbers():
    "Frozen at 1e-4; the small case is checked by linear algebra above, Z by powers of the legal block here."
    tree = bigram(8)
    legal = torch.tensor([[.1, .2, .1], [.3, .4, .1], [.2, .1, .1]], dtype=torch.float64)
    assert abs(tree.normaliser - float((torch.full((3,), .25, dtype=torch.float64) @ torch.linalg.matrix_power(legal, 7)).sum())) < 1e-15
    trees = {alpha: legal_guide(tree, avoiding(tree, 3), alpha) for alpha in (0.1, 0.3, 0.5, 0.7)}
    assert abs(total_variation(action_level(trees[0.5]), tree.target) - LOCAL) < 1e-4
    for alpha, (distance, steps) in FIRST.items():
        assert abs(total_variation(first_leaf(trees[alpha]), tree.target) - distance) < 1e-4 and abs(expected_steps(trees[alpha]) - steps) < 0.01
    assert total_variation(later_leaf(trees[0.5], 20)[0], tree.target) < 0.02 < total_variation(first_leaf(trees[0.5]), tree.target)

LOCAL = 0.3890  # total variation of locally constrained decoding
FIRST = {0.1: (0.3254, 11.2207), 0.3: (0.2094, 22.3382), 0.5: (0.1292, 48.7576), 0.7: (0.0889, 119.9411)}  # depth factor: TV, steps

def test_alpha_moves_the_first_leaf_only():
    tree = bigram(5)
    trees = [legal_guide(tree, avoiding(tree, 3), alpha) for alpha in (0.01, 0.3, 0.6)]
    for t in trees:
        assert_close(action_level(t), action_level(trees[0]))
        assert_close(stationary(t)[t.leaf] / stationary(t)[t.leaf].sum(), tree.target[t.leaf])
    distances = [total_variation(first_leaf(t), tree.target) for t in trees]
    assert distances == sorted(distances, reverse=True) and distances[0] < total_variation(action_level(trees[0]), tree.target)

@pytest.mark.parametrize("alpha", [0., -1., 1.5, math.nan])
def test_depth_factors_that_are_none(alpha):
    with pytest.raises(ValueError, match="alpha"): legal_guide(abc(2), avoiding(abc(2), 2), alpha)

def test_dead_root():
    with pytest.raises(ValueError): legal_guide(abc(2), torch.zeros(13, dtype=torch.bool), 0.5)

def test_rollouts_are_texts_of_the_model():
    tree = bigram(3)
    path = rollouts(tree, 20_000, generator())
    assert (path[:, 0] == 0).all() and torch.equal(tree.parent[path[:, 1:]], path[:, :-1]) and tree.leaf[path[:, -1]].all()
    share = torch.bincount(path[:, -1], minlength=len(tree.prob)) / len(path)
    assert (share - tree.reach * tree.leaf).abs().max() < 5 * 0.25**0.5 / len(path)**0.5

def test_one_hot_tells_prefixes_apart():
    tree = abc(4)
    x = one_hot(tree)
    assert len(x.unique(dim=0)) == len(tree.prob) and torch.equal(x.sum(1), tree.depth.float())
    assert torch.equal(x[tree.leaf].unflatten(1, (4, 3)).argmax(2), tree.letter[torch.stack([tree.parent[tree.parent[tree.parent[tree.leaves]]], tree.parent[tree.parent[tree.leaves]], tree.parent[tree.leaves], tree.leaves], 1)])

def test_networks_learn_and_do_not_know_each_other():
    tree = abc(4)
    paths = [rollouts(tree, 5000, generator(i)) for i in range(2)]
    values = learn(tree, paths, generator(), steps=100, batch=128)
    assert values.shape == (2, len(tree.prob)) and (values > 0).all() and not torch.equal(*values)
    for v in values:
        t = guided(tree, v)
        assert total_variation(first_leaf(t), t.target) < total_variation(action_level(t), t.target) < 0.15
    late = (tree.true_value == 0) & ~tree.leaf
    assert values[:, late].max() < 0.2                                     # knows a c when it sees one

def test_errors_by_hand():
    assert verifier_error(abc(5)) == (0, 0)
    uniform, average = verifier_error(abc(5, eps=1.))
    assert abs(uniform - 1) < 1e-12 and abs(average - 0.5) < 1e-12         # half of the target's prefixes end in a, their ratio is 2

def test_hull():
    points = [(0.1, 9.), (0.5, 5.), (0.9, 0.)]
    assert best_at(0., points) == 9 and best_at(0.1, points) == 9 and best_at(0.9, points) == 0 and best_at(1., points) == 0
    assert best_at(0.3, points) == pytest.approx(7) and best_at(0.7, points) == pytest.approx(2.5)
    assert best_at(0.5, [(0.1, 9.), (0.5, 1.), (0.9, 0.)]) == pytest.approx(4.5)   # a mixture beats the middle
    for d in (0.2, 0.6, 0.8): assert best_at(d, points + [(0.95, -3.)]) == best_at(d, points)
    for d in (0.2, 0.6, 0.8): assert best_at(d, points + [(0.4, 8.)]) >= best_at(d, points)

def text(rows, scores): return Texts(torch.tensor(rows), torch.tensor(scores), torch.zeros(len(rows)))

def test_advantage_is_what_it_says():
    "Our texts are as varied as the rival's and 2 nats likelier; a rival that repeats itself does not count, whatever its score."
    rows = torch.arange(40).view(8, 5).tolist()
    ours, equal = text(rows, [-8.] * 8), text(rows, [-10.] * 8)
    dull = text([[1, 1, 1, 1, 1]] * 8, [-1.] * 8)
    value, low, high = advantage(ours, [equal], [dull], generator(), draws=50)
    assert value == pytest.approx(2) and low <= value + 6 and high >= 0
    value, low, high = advantage(equal, [equal], [], generator(), draws=50)
    assert value == 0 and low == high == 0
    with pytest.raises(ValueError, match="same size"): advantage(ours, [text(rows[:4], [0.] * 4)], [], generator())

def test_distinct2_counts_pairs():
    tokens = torch.randint(4, (6, 7), generator=generator())
    pairs = [tuple(p) for row in tokens.tolist() for p in zip(row, row[1:])]
    assert distinct2(tokens) == len(set(pairs)) / len(pairs)

def test_constrained_draws_its_law():
    "All texts of two letters by a full beam; constrained decoding has law π_ref / (product of legal shares), at a temperature too."
    task = random_writing(generator(3))
    every = beam(task, 2, 25**2)
    law = (every.log_ref - every.log_legal).exp()
    assert_close(law.sum(), torch.tensor(1.))
    drawn = constrained(task, 2, torch.ones(20_000), generator())
    order = {tuple(t): i for i, t in enumerate(every.tokens.tolist())}
    share = torch.bincount(torch.tensor([order[tuple(t)] for t in drawn.tokens.tolist()]), minlength=625) / 20_000
    assert (share - law).abs().max() < 5 * float((law.max() / 20_000) ** 0.5)
    assert_close(drawn.log_ref[:50], torch.stack([every.log_ref[order[tuple(t)]] for t in drawn.tokens[:50].tolist()]))
    cold, hot = (constrained(task, 2, torch.full((2000,), t), generator()).log_ref.mean() for t in (0.5, 1.5))
    assert cold > drawn.log_ref.mean() > hot

def test_temperature_divides_logits():
    task = random_writing(generator())
    before = task.model(task.prompt)
    set_temperature(task.model, 2.)
    assert_close(task.model(task.prompt), before / 2)

def test_letter_avoidance_end_to_end():
    "The walk's first leaf on a tiny model: legal, scored right, and its rows hold what the measurement needs."
    task: Writing = random_writing(generator())
    texts, rows = letter_avoidance(task, generator(1), horizon=4, walkers=6, alphas=(0.5,), temperatures=(0.8, 1.))
    assert list(texts) == [row["sampler"] for row in rows] == ["greedy", "beam", "constrained, T = 0.8", "constrained, T = 1", "VGB, α = 0.5"]
    for t in texts.values():
        assert t.tokens.shape == (6, 4) and task.legal[t.tokens].all()
        logp = task.model(torch.cat([task.prompt.expand(6, -1), t.tokens], 1), last=5)[:, :-1].log_softmax(-1)
        assert_close(t.log_ref, logp.gather(2, t.tokens[..., None]).sum((1, 2)), atol=1e-4, rtol=1e-4)
    assert rows[-1]["low"] <= rows[-1]["high"] and rows[-1]["tokens read per text"] > 0 and rows[-1]["steps per text"] >= 4
    again, _ = letter_avoidance(task, generator(1), horizon=4, walkers=6, alphas=(0.5,), temperatures=(0.8, 1.))
    assert all(torch.equal(texts[name].tokens, again[name].tokens) for name in texts)
