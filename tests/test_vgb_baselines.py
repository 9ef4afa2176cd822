"The samplers that never go back: each against a law that was worked out without it, on trees of every kind."
import math
from collections import defaultdict
from fractions import Fraction
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from llmwatch_course.vgb.baselines import (Ledger, action_level_sample, base_choice, beam_search, best_of, block_best, block_rejection, choice, expansions, greedy, guided_choice,
                                           leaf_law, outcome_rejection, pick, populations, sampling_noise, smc, smc_law, systematic)
from llmwatch_course.vgb.exact import neighbour_weights
from llmwatch_course.vgb.tree import abc, action_level, complete, delay, dyck, random_tree, total_variation

KINDS = "plain", "dead ends", "zero edges", "variable depth"
calm = settings(max_examples=25, deadline=None, derandomize=True)
seeds, kinds = st.integers(0, 10**6), st.sampled_from(KINDS)


def generator(seed=0): return torch.Generator().manual_seed(seed)


def matches(tree, draws, law, seed_risk=1e-9):
    "The draws show this law: total variation below its mean plus McDiarmid's term."
    law, n = law.clone(), len(draws.leaves)
    law[0] += law[~tree.leaf][1:].sum()                                    # stuck inside: comes back with nothing
    law[~tree.leaf.index_fill(0, torch.tensor(0), True)] = 0
    most = (law * (1 - law).clamp(min=0) / n).sqrt().sum() / 2 + math.sqrt(-math.log(seed_risk) / (2 * n))
    assert total_variation(leaf_law(tree, draws.leaves), law) < most


@calm
@given(seeds, kinds)
def test_laws_on_random_trees(seed, kind):
    g = generator(seed)
    tree = random_tree(g, kind)
    matches(tree, action_level_sample(tree, 4000, g), action_level(tree))
    matches(tree, smc(tree, 1, 4000, g), action_level(tree))
    matches(tree, block_rejection(tree, 4000, 1, 1, g), torch.where(tree.value > 0, tree.reach * tree.leaf, 0.) + stuck(tree))
    if tree.normaliser / tree.value[tree.leaf].max() > 0.02: matches(tree, outcome_rejection(tree, 1000, g), tree.target)


def stuck(tree):
    "At the root: what the base model writes that has value 0 at its end or on the way."
    alive = tree.value > 0
    for level in tree.levels[1:]: alive[level] &= alive[tree.parent[level]]
    out = torch.zeros_like(tree.reach)
    out[0] = 1 - (tree.reach * (tree.leaf & alive)).sum()
    return out


@calm
@given(seeds, kinds, st.sampled_from([1, 2, 3, 7]), st.sampled_from([0., 0.5, 1.]))
def test_weighted_populations_are_unbiased(seed, kind, particles, ess):
    g, runs = generator(seed), 3000
    tree = random_tree(g, kind)
    P = populations(tree, particles, runs, g, ess)
    each = torch.zeros(runs, len(tree.parent), dtype=torch.float64).scatter_add_(1, P.nodes, P.weights.double() * P.normaliser[:, None])
    error = each.std(0) / runs**0.5
    often = (each > 0).sum(0) > 100                                        # often enough for a normal limit
    assert ((each.mean(0) - tree.reach * tree.value)[often].abs() <= 7 * error[often] + 1e-6).all()
    assert abs(each.sum(1).mean() - tree.normaliser) <= 6 * each.sum(1).std() / runs**0.5 + 1e-5 * tree.normaliser
    assert (each[:, ~tree.leaf | (tree.target == 0)] == 0).all()
    total = P.weights.sum(1)
    assert ((total - 1).abs() < 1e-5).logical_or(total == 0).all() and torch.equal(total == 0, P.normaliser == 0)


def systematic_exact(weights):
    "All ways to resample, with probabilities: the ancestors change only where a slot meets an edge."
    N, total = len(weights), sum(weights)
    edges = [sum(weights[:i + 1]) / total for i in range(N)]
    cuts = sorted({Fraction(0), Fraction(1), *(N * e - j for e in edges for j in range(N) if 0 < N * e - j < 1)})
    for a, b in zip(cuts, cuts[1:]):
        u = (a + b) / 2
        yield b - a, tuple(next(i for i, e in enumerate(edges) if e > (u + j) / N) for j in range(N))


def smc_exact(tree, N, ess):
    "The law of the leaf drawn from one population, by enumerating all that can happen, in fractions."
    on = [[Fraction(w) for w in row] for row in neighbour_weights(tree)[:, 1:].tolist()]
    value, children, inner = [Fraction(v) for v in tree.value.tolist()], tree.children.tolist(), (~tree.leaf).tolist()
    states = {((0,) * N, (Fraction(1, N),) * N): Fraction(1)}
    for _ in range(tree.height):
        after = defaultdict(Fraction)
        for (nodes, weights), p in states.items():
            weights = [w * (sum(on[s]) / value[s] if inner[s] else 1) for s, w in zip(nodes, weights)]
            weights = [w / sum(weights) for w in weights]
            poor = sum(w * w for w in weights) * N * Fraction(ess) > 1
            for q, ancestors in systematic_exact(weights) if poor else [(Fraction(1), range(N))]:
                kept = tuple(Fraction(1, N) for _ in range(N)) if poor else tuple(weights)
                moves = [((), Fraction(1))]
                for i in ancestors:
                    ways = [(c, w / sum(on[nodes[i]])) for c, w in zip(children[nodes[i]], on[nodes[i]]) if w] if inner[nodes[i]] else [(nodes[i], Fraction(1))]
                    moves = [(m + (c,), r * w) for m, r in moves for c, w in ways]
                for m, r in moves: after[m, kept] += p * q * r
        states = after
    law = torch.zeros_like(tree.reach)
    for (nodes, weights), p in states.items():
        for s, w in zip(nodes, weights): law[s] += float(p * w)
    return law


@pytest.mark.parametrize("N, ess, height", [(2, 0.75, 3), (2, 1., 3), (3, 0.875, 2)])
def test_smc_has_the_enumerated_law(N, ess, height):
    g, runs = generator(1), 200_000
    prob = torch.tensor([0.3, 0.7], dtype=torch.float64)
    tree = complete(2, height, prob, tau=torch.rand(2**height, generator=g) + 0.1)
    rough = tree.true_value * (torch.randn(len(tree.parent), generator=g, dtype=torch.float64)).exp()
    tree = tree.with_values(torch.where(tree.leaf, tree.value, rough))
    exact = smc_exact(tree, N, ess)
    assert_close(exact.sum().item(), 1.) and total_variation(exact, tree.target) > 0.02
    matches(tree, smc(tree, N, runs, g, ess), exact)
    law, _ = smc_law(tree, N, runs, g, ess)
    assert total_variation(law, exact) < 0.01


def test_smc_tends_to_the_target():
    tree = dyck(8, generator=generator(0))
    far = {N: total_variation(smc_law(tree, N, 40_000, generator(2))[0], tree.target) for N in (1, 4, 16, 64)}
    assert far[1] > 2 * far[4] > 4 * far[16] and far[64] < 0.02
    assert abs(far[1] - total_variation(action_level(tree), tree.target)) < 0.02
    exact = tree.with_values(tree.true_value)
    assert total_variation(smc_law(exact, 2, 40_000, generator(3))[0], exact.target) < 0.02   # no error, no bias


@calm
@given(seeds, kinds, st.sampled_from([1, 3, 8]))
def test_bills_of_populations(seed, kind, N):
    g = generator(seed)
    tree = random_tree(g, kind)
    P = populations(tree, N, 50, g)
    inner = int((~tree.leaf).sum())
    assert (P.distinct >= 1).all() and (P.distinct <= inner).all() and (P.distinct <= P.transitions).all() and (P.transitions <= N * tree.height).all()
    nodes = torch.randint(0, len(tree.parent), (40, N), generator=g)
    weights = torch.rand(40, N, generator=g).where(torch.rand(40, N, generator=g) < 0.7, 0.)
    fan = (tree.children >= 0).sum(1)
    asked = [{s for s, w in zip(a, b) if w > 0 and fan[s] > 0} for a, b in zip(nodes.tolist(), weights.tolist())]
    assert expansions(nodes, weights, fan)[1].tolist() == [len(s) for s in asked]
    assert expansions(nodes, weights, fan)[2].tolist() == [sum(int(fan[x]) for x in s) for s in asked]


def test_a_whole_population_can_die():
    prob = torch.tensor([0.5, 0.5], dtype=torch.float64)
    tree = complete(2, 2, prob, tau=torch.tensor([0., 0, 1, 1]))
    tree = tree.with_values(torch.tensor([0.5, 0.9, 0.1, 0, 0, 1, 1], dtype=torch.float64))   # the left half is a dead end
    draws, P = smc(tree, 2, 20_000, generator(), 0.), populations(tree, 2, 20_000, generator(), 0.)
    dead = (draws.leaves < 0).double().mean().item()
    assert abs(dead - 0.81) < 0.02 and set(draws.leaves.tolist()) == {-1, 5, 6}
    assert (P.normaliser[P.weights.sum(1) == 0] == 0).all() and (draws.distinct[draws.leaves < 0] == 2).all()
    assert abs(smc_law(tree, 2, 20_000, generator(), 0.)[0][0] - dead) < 1e-9
    assert (action_level_sample(tree, 100, generator()).leaves != 3).all()


@calm
@given(seeds, kinds)
def test_beam_is_greedy_or_best(seed, kind):
    tree = random_tree(generator(seed), kind)
    worth, node = neighbour_weights(tree)[:, 1:], 0
    while not tree.leaf[node] and worth[node].max() > 0: node = int(tree.children[node, worth[node].argmax()])
    mine = int(greedy(tree).leaves[0])
    assert mine == (node if tree.leaf[node] and tree.value[node] > 0 else -1)
    best = int(beam_search(tree, len(tree.parent)).leaves[0])
    assert_close(tree.target[best], tree.target.max())


def test_best_of_and_blocks():
    tree, g = abc(4, 1.), generator(5)
    bad = (1 - tree.normaliser)**3
    law = tree.target * (1 - bad) + torch.where(tree.leaf & (tree.value == 0), tree.reach / (1 - tree.normaliser), 0.) * bad
    matches(tree, best_of(tree, 20_000, 3, g), law)
    matches(tree, block_best(tree, 20_000, 4, 3, g), law.where(tree.value > 0, 0.) + bad * torch.eye(len(law))[0])
    late = delay(4)
    matches(late, block_rejection(late, 4000, 1, 200, g), action_level(late))
    matches(late, block_rejection(late, 4000, 4, 200, g), late.target)
    matches(late, outcome_rejection(late, 4000, g), late.target)         # rewards above 1
    p, value = late.prob[late.children[0]], late.value[late.children[0]]   # two candidates for the first letter, by hand
    first = 2 * p * (p * value[:, None] / (value[:, None] + value)).sum(1)
    leaves = block_rejection(late, 20_000, 1, 2, g).leaves
    while (late.depth[leaves] > 1).any(): leaves = late.parent[leaves]
    assert ((leaves == late.children[0, 0]).double().mean() - first[0]).abs() < 0.02


def test_bills_by_hand():
    tree = complete(2, 3, tau=torch.ones(8))
    ledger = Ledger(tree, 2)
    for draw, path in ((0, (0, 1, 3, 7)), (0, (0, 1, 4, 9)), (1, (0, 2, 5, 11))):
        for a, b in zip(path, path[1:]): ledger.move(torch.tensor([draw]), torch.tensor([a]), torch.tensor([b]))
        ledger.judge(torch.tensor([draw]), torch.tensor([path[-1]]))
    draws = ledger.close(torch.tensor([9, 11]))
    assert [x.tolist() for x in draws] == [[9, 11], [6, 3], [4, 3], [2, 1]]
    one = action_level_sample(tree, 5)
    assert (one.transitions == 3).all() and (one.distinct == 3).all() and (one.values == 6).all()
    assert (best_of(tree, 5, 4).transitions == 12).all() and (best_of(tree, 5, 50, generator()).distinct == 7).all()
    assert outcome_rejection(tree, 5).transitions.tolist() == [3] * 5      # everything is accepted


def test_pick_never_takes_a_letter_of_weight_zero():
    tree = complete(4, 1, torch.tensor([0., 0.5, 0., 0.5], dtype=torch.float64))
    ends = torch.tensor([0., 0.25, 0.5 - 2**-24, 0.5, 1 - 2**-24])
    assert pick(base_choice(tree), torch.zeros(5, dtype=torch.long), ends).tolist() == [2, 2, 2, 4, 4]
    none = choice(tree, torch.zeros(5, 4, dtype=torch.float64))
    assert pick(none, torch.arange(5), torch.full((5,), 0.3)).tolist() == [0, 1, 2, 3, 4]
    assert pick(guided_choice(tree), torch.tensor([[3], [4]]), torch.tensor([[0.1], [0.9]])).tolist() == [[3], [4]]


@calm
@given(seeds, st.integers(1, 12))
def test_systematic(seed, N):
    g = generator(seed)
    weights = torch.rand(200, N, generator=g).where(torch.rand(200, N, generator=g) < 0.7, 0.)
    weights[:, 0] += 0.01
    weights = weights / weights.sum(1, keepdim=True)
    children = torch.nn.functional.one_hot(systematic(weights, torch.rand(200, 1, generator=g)), N).sum(1)
    assert (children.sum(1) == N).all() and ((children - N * weights).abs() < 1 + 1e-5).all() and (children[weights == 0] == 0).all()
    assert systematic(torch.tensor([[0., 0.5, 0., 0.5]]), torch.zeros(1, 1)).tolist() == [[1, 1, 3, 3]]


def test_sampling_noise_is_what_theory_says():
    law = torch.full((400,), 1 / 400, dtype=torch.float64)
    assert abs(sampling_noise(law, 100_000, generator()) / (400 * math.sqrt(2 / math.pi / 400 / 100_000) / 2) - 1) < 0.1


def test_a_million_runs_are_quick():
    import time
    tree, start = dyck(14, generator=generator()), time.process_time()
    law, distinct = smc_law(tree, 8, 100_000, generator())
    assert time.process_time() - start < 5 and 60 < distinct < 80          # about 0.35 s
    assert 0.05 < total_variation(law, tree.target) < 0.12
