"""Walks on a language model: the same moves whatever is remembered, the exact laws on small trees, and clear refusals."""
import itertools
import pytest, torch
from llmwatch_course.foundations.decoder import Config, Decoder
from llmwatch_course.vgb import exact
from llmwatch_course.vgb.lm_walk import Memo, Recompute, Stack, Walk, legal_only, lm_first_leaves, pick, plain_walk, race
from llmwatch_course.vgb.tree import Tree

H, VOCAB = 4, 5


@pytest.fixture(scope="module")
def model(): return Decoder(Config.tiny(vocab=VOCAB, layers=2, channels=32, head_dim=8, hidden=32, context=24)).initialise(torch.Generator().manual_seed(0)).double()


PROMPT, LEGAL = torch.tensor([[1, 2, 0]]), torch.tensor([True, True, False, True, True])


def numbers(b, t, seed=0): return torch.rand(b, t, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bumpy(prefixes, logp):
    "Values of any kind, frozen: they depend on prefix and child only; some leaves are worth nothing."
    code = ((prefixes + 2) * torch.tensor([3, 7, 11, 13])[:prefixes.shape[1]]).sum(1, keepdim=True) + 5 * torch.arange(VOCAB)
    value = 2 * torch.sin(code.double())
    return value.masked_fill(((prefixes >= 0).sum(1, keepdim=True) == prefixes.shape[1] - 1) & (code % 4 == 0), -torch.inf)


@pytest.mark.parametrize("verifier", [legal_only(LEGAL, 0.5), legal_only(LEGAL, 1e-6), bumpy])
def test_same_walk_whatever_is_remembered(model, verifier):
    u = numbers(12, 90)
    recompute, stack = Recompute(model, PROMPT, H, 12), Stack(model, PROMPT, H, 12)
    truth = plain_walk(recompute, verifier, H, u)
    assert torch.equal(plain_walk(stack, verifier, H, u), truth)
    walk = Walk(model, PROMPT, verifier, H, u).run(lambda w: w.taken >= 90)
    assert torch.equal(walk.moves, truth)
    assert walk.counters.forward_tokens <= stack.fed < recompute.fed
    for row in range(3):                                                   # alone as in company
        assert torch.equal(Walk(model, PROMPT, verifier, H, u[row:row + 1]).run(lambda w: w.taken >= 90).moves, truth[row:row + 1])


def test_rows_that_finish_leave_the_stack_and_can_come_back(model):
    u = numbers(24, 400)
    truth = plain_walk(Stack(model, PROMPT, H, 24), legal_only(LEGAL, 0.7), H, u)
    depth = torch.where(truth >= 0, 1, -1).cumsum(1)
    walk = Walk(model, PROMPT, legal_only(LEGAL, 0.7), H, u)
    for k in (1, 3, 8):
        walk.run(lambda w, k=k: w.leaves >= k)
        steps = ((depth == H).cumsum(1) >= k).long().argmax(1) + 1
        assert torch.equal(walk.taken, steps) and len(walk.seats) <= 24
        assert all(torch.equal(walk.moves[r, :n], truth[r, :n]) for r, n in enumerate(steps.tolist()))
    walk.run(lambda w: w.taken >= 400)
    assert torch.equal(walk.moves, truth)
    assert walk.counters.leaves == (depth == H).sum() and walk.counters.returns == (depth == 0).sum()


def test_stack_after_any_jumps(model):
    "Rows pop and push different numbers of tokens, or none; the answers are those of reading everything."
    g = torch.Generator().manual_seed(1)
    stack, recompute = Stack(model, PROMPT, 12, 6), Recompute(model, PROMPT, 12, 6)
    path = torch.full((6, 12), -1)
    for _ in range(25):
        asked = torch.rand(6, generator=g) < 0.7
        for row in asked.nonzero()[:, 0].tolist():                         # keep a part, then go somewhere new
            keep, depth = sorted(torch.randint(0, 13, (2,), generator=g).tolist())
            path[row, keep:] = -1
            path[row, :depth] = torch.where(path[row, :depth] >= 0, path[row, :depth], torch.randint(VOCAB, (depth,), generator=g))
        torch.testing.assert_close(stack.logp(path, asked)[asked], recompute.logp(path, asked)[asked], rtol=0, atol=1e-10)
        assert torch.equal(stack.cache.seen, 3 + (stack.held >= 0).sum(1))


def test_one_forward_per_miss(model):
    walk = Walk(model, PROMPT, legal_only(LEGAL, 0.5), H, numbers(16, 60)).run(lambda w: w.taken >= 60)
    moves, seen = walk.moves, {()}
    for row in moves.tolist():
        path = []
        for move in row:                                                   # the prefixes left from are those that had to be expanded
            if len(path) < H: seen.add(tuple(path))
            path = path[:-1] if move < 0 else [*path, move]
    assert walk.counters.expansions == len(seen) == len(walk.memo.up) - 1
    assert walk.counters.transitions == 16 * 60
    assert walk.counters.forward_tokens >= 3 + len(seen) - 1               # holes are on top
    assert walk.memo.keys[1:].unique().numel() == len(walk.memo.keys) - 1 == len(walk.memo.parent) - 1


@torch.no_grad()
def as_tree(model, verifier, horizon):
    "Every prefix in a table: the walk on it is solved exactly by `exact`."
    nodes, parent, prob, value = [()], [-1], [1.], [1.]
    for depth in range(horizon):
        level = [i for i, n in enumerate(nodes) if len(n) == depth]
        paths = torch.tensor([list(nodes[i]) + [-1] * (horizon - depth) for i in level])
        logp = model(torch.cat([PROMPT.expand(len(level), -1), paths[:, :depth]], 1), last=1)[:, 0].log_softmax(-1)
        said = verifier(paths, logp).exp()
        for j, i in enumerate(level):
            for a in range(VOCAB): nodes.append((*nodes[i], a)); parent.append(i); prob.append(logp[j, a].exp().item()); value.append(said[j, a].item())
    n = len(nodes)
    children = torch.full((n, VOCAB), -1)
    for i in range(1, n): children[parent[i], nodes[i][-1]] = i
    make = lambda x: torch.tensor(x, dtype=torch.float64)
    return nodes, Tree(torch.tensor(parent), torch.tensor([-1] + [x[-1] for x in nodes[1:]]), torch.tensor([len(x) for x in nodes]), children, make(prob), make(value))


def test_laws_on_a_tree_that_can_be_written_down(model):
    horizon, walkers = 3, 10_000
    nodes, tree = as_tree(model, bumpy, horizon)
    number = {node: i for i, node in enumerate(nodes)}
    walk = Walk(model, PROMPT, bumpy, horizon, numbers(walkers, 2000, 5))
    z = tree.normaliser
    assert abs(walk.log_w1 - (tree.prob * tree.value)[1:VOCAB + 1].sum().log().item()) < 1e-10
    for k, law in ((1, exact.first_leaf(tree)), (5, exact.later_leaf(tree, 5)[0])):
        walk.run(lambda w, k=k: w.leaves >= k)
        at = torch.tensor([number[tuple(p)] for p in walk.path.tolist()])
        seen = torch.bincount(at, minlength=len(nodes)).double() / walkers
        noise = (law * (1 - law) / walkers).sqrt()
        assert ((seen - law).abs() <= 5 * noise + 1e-4).all()
        torch.testing.assert_close(walk.log_ref, tree.reach[at].log())
    tours = Walk(model, PROMPT, bumpy, horizon, numbers(walkers, 4000, 6)).run(lambda w: w.returns >= 1)
    leaves = tours.leaves.double() * torch.tensor(tours.log_w1).exp()
    assert abs(leaves.mean() - z) < 4 * leaves.std() / walkers**0.5


def test_float32_and_far_depths(model):
    "alpha^H is far below what float32 can hold; only ratios are used."
    single = Decoder(model.config); single.load_state_dict(model.state_dict())
    out = lm_first_leaves(single, PROMPT, legal_only(LEGAL, 1e-3), 20, 8, torch.Generator().manual_seed(0), 500)
    assert out.tokens.shape == (8, 20) and LEGAL[out.tokens].all() and out.log_ref.isfinite().all()
    whole = single(torch.cat([PROMPT.expand(8, -1), out.tokens], 1))[:, 2:-1].log_softmax(-1).gather(2, out.tokens[..., None])[..., 0].sum(1)
    torch.testing.assert_close(out.log_ref.float(), whole.detach(), rtol=1e-4, atol=1e-4)
    again = lm_first_leaves(single, PROMPT, legal_only(LEGAL, 1e-3), 20, 8, torch.Generator().manual_seed(0), 500)
    assert torch.equal(again.tokens, out.tokens) and again.counters == out.counters


def test_draw_in_blocks_is_drawing(model):
    memo, n = Memo(torch.zeros(1, 11, dtype=torch.float64), 2), 200_000
    logp, values = torch.randn(2, 1, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[0, [0, 4, 10]] = -torch.inf
    memo.expand(torch.tensor([0]), logp, values)
    law, u = (logp + values).softmax(1)[0], (torch.arange(n, dtype=torch.float64) + 0.5) / n
    seen = torch.bincount(memo.draw(torch.zeros(n, dtype=torch.long), u), minlength=11) / n
    torch.testing.assert_close(seen.double(), law, rtol=0, atol=11 / n)
    index, rest = pick(law.expand(n, -1), u)
    assert (rest >= 0).all() and (rest <= 1).all() and (law[index] > 0).all()


class Moody:
    def __init__(self, steady): self.calls, self.steady = 0, steady
    def __call__(self, prefixes, logp):
        self.calls += 1
        return torch.full_like(logp, 0. if self.calls <= self.steady else -0.5)


@pytest.mark.parametrize("steady", [1, 2, 5])
def test_a_verifier_that_changes_its_mind_is_caught(model, steady):
    with pytest.raises(ValueError, match="changed its mind"): Walk(model, PROMPT, Moody(steady), H, numbers(8, 200)).run(lambda w: w.leaves >= 3)


def test_noise_is_caught_at_once(model):
    with pytest.raises(ValueError, match="changed its mind"): Walk(model, PROMPT, lambda prefixes, logp: torch.rand(logp.shape), H, numbers(1, 9))


@pytest.mark.parametrize("said, message", [
    (lambda p, logp: torch.full_like(logp, torch.nan), "NaN"), (lambda p, logp: torch.full_like(logp, -1.).log(), "NaN"),
    (lambda p, logp: torch.full_like(logp, torch.inf), "infinite"), (lambda p, logp: logp[:, 0], "one for each child"),
    (lambda p, logp: torch.full_like(logp, -torch.inf), "root is dead")])
def test_bad_values(model, said, message):
    with pytest.raises(ValueError, match=message): Walk(model, PROMPT, said, H, numbers(2, 9))


@pytest.mark.parametrize("prompt, horizon, message", [
    (PROMPT, 22, "beyond the 24"), (PROMPT, 0, "at least 1 token"), (PROMPT[0], 3, "prompt must be"), (PROMPT[:, :0], 3, "prompt must be")])
def test_bad_places(model, prompt, horizon, message):
    for make in (lambda: Walk(model, prompt, legal_only(LEGAL, 0.5), horizon, numbers(2, 9)), lambda: Recompute(model, prompt, horizon, 2)):
        with pytest.raises(ValueError, match=message): make()


def test_other_refusals(model):
    with pytest.raises(ValueError, match="float64"): Walk(model, PROMPT, bumpy, H, numbers(2, 9).float())
    with pytest.raises(ValueError, match="alpha must be positive"): legal_only(LEGAL, 0)
    with pytest.raises(RuntimeError, match="not done after 3 transitions"): lm_first_leaves(model, PROMPT, legal_only(LEGAL, 0.5), H, 4, torch.Generator().manual_seed(0), 3)


def test_a_dead_end_is_only_left_upwards(model):
    "Prefixes that begin with 0 look fine and have no legal continuation."
    def verifier(prefixes, logp):
        said = torch.zeros_like(logp)
        said[prefixes[:, 0] == 0] = -torch.inf
        return said
    walk = Walk(model, PROMPT, verifier, 2, numbers(64, 200)).run(lambda w: w.leaves >= 2)
    trapped = walk.moves[:, :-1] == 0
    depth = torch.where(walk.moves >= 0, 1, -1).cumsum(1)[:, :-1]
    bounced = walk.moves[:, 1:][trapped & (depth == 1) & (walk.moves[:, 1:] > -2)]
    assert len(bounced) and (bounced == -1).all() and (walk.path[:, 0] != 0).all()


def test_race_walks_the_same_walk(model):
    runs = race(model, PROMPT, legal_only(LEGAL, 0.5), H, numbers(4, 30))
    moves = [r.moves for r in runs.values()]
    assert all(torch.equal(a, b) for a, b in itertools.pairwise(moves))
    tokens = [r.tokens for r in runs.values()]
    assert tokens == sorted(tokens, reverse=True)
