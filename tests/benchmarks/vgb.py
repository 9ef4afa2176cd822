"""Chapter 8: walks on a table tree beside a plain NumPy walk, populations of our SMC, walks on a language model with and without a memory. Under a minute on two cores."""
import asyncio, importlib.util, math, statistics
import numpy as np
import torch
from llmwatch_course.vgb.baselines import populations, sampling_noise, smc_law
from llmwatch_course.vgb.exact import neighbour_weights
from llmwatch_course.vgb.tree import complete, dyck, total_variation
from llmwatch_course.vgb.walk import neighbours, walk_steps
from tests.benchmarks import seconds

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WALKERS = 1_000_000 if DEVICE.type == "cuda" else 4096


def rows() -> list[dict]:
    return [*table_walk(), *smc(), genlm(), *language()]


def rates(what, ours, mine, peer, theirs, unit, aim="", repeats=5):
    "Both in turns, after one round to warm up; they take `mine` and `theirs` steps. Medians a second, median and range of the ratio ours / peer."
    pairs = [(mine / seconds(ours), theirs / seconds(peer)) for _ in range(repeats + 1)][1:]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (round(statistics.median(p)) for p in zip(*pairs))
    return dict(what=what, ours=a, peer=b, ratio=round(statistics.median(ratios), 2), spread=f"{ratios[0]:.2f}-{ratios[-1]:.2f}", unit=f"{unit}/s", aim=aim)


def finished(call):
    "The same call, at whose end a GPU has done its work."
    def whole():
        call()
        if DEVICE.type == "cuda": torch.cuda.synchronize()
    return whole


def numpy_walk(tree, walkers, steps):
    "The same walk as a beginner in NumPy would write it: table look-ups, one loop over steps."
    running, place = neighbour_weights(tree).cumsum(1).numpy(), torch.cat([tree.parent[:, None], tree.children], 1).numpy()
    edges, random = running / running[:, -1:], np.random.default_rng(0)
    def call():
        nodes = np.zeros(walkers, np.int64)
        for _ in range(steps): nodes = place[nodes, (random.random(walkers)[:, None] >= edges[nodes]).sum(1)]
    return call


def table_walk():
    tree = complete(2, 12)
    there, generator = tree.to(DEVICE), torch.Generator(DEVICE).manual_seed(0)
    kernel = neighbours(there)
    ours, aim = finished(lambda: walk_steps(there, WALKERS, 1000, generator, kernel=kernel)), 500 if DEVICE.type == "cuda" else 15
    yield rates(f"walk on a binary tree of height 12, {WALKERS:,} walkers, beside NumPy with 4,096",
                ours, WALKERS * 1000, numpy_walk(tree, 4096, 200), 4096 * 200, "steps", f"ours >= {aim},000,000")


def smc():
    "Populations on 14 brackets: many at once, beside the same code one population at a time."
    tree, generator, runs = dyck(14, generator=torch.Generator().manual_seed(0)).to(DEVICE), torch.Generator(DEVICE).manual_seed(0), 2**14
    def one_by_one():
        for _ in range(32): populations(tree, 8, 1, generator)
    letters = 8 * tree.height
    yield rates(f"SMC, 8 particles, 14 brackets: {runs:,} populations at once, beside one by one",
                finished(lambda: populations(tree, 8, runs, generator)), runs * letters, finished(one_by_one), 32 * letters, "letters", "ours >= 9,300,000: a million runs in 12 s")


def genlm(runs=300, particles=8):
    "The same task for genlm-control: 8 brackets. Without resampling, so that the law is one, whether weights come before letters or after."
    what = f"SMC, {particles} particles, 8 brackets, beside genlm-control"
    if importlib.util.find_spec("genlm") is None:
        return dict(what=f"{what}: not compared, genlm-control is not installed", ours="", peer="", ratio="", spread="", unit="", aim="")
    from genlm.control import SMC, Potential, direct_token_sampler
    tree, laws = dyck(8, generator=torch.Generator().manual_seed(0)), {}
    class Brackets(Potential):
        def at(self, letters, ends):
            node = 0
            for letter in letters: node = int(tree.children[node, letter]) if node >= 0 else -1
            worth = tree.reach[node] * tree.value[node] if node >= 0 and (tree.leaf[node] or not ends) else 0.
            return math.log(worth) if worth > 0 else -math.inf
        async def prefix(self, context): return self.at(context, False)
        async def complete(self, context): return self.at(context, True)
    sampler = SMC(direct_token_sampler(Brackets([0, 1])))
    async def populations_of_theirs():
        return [await sampler(n_particles=particles, ess_threshold=0, max_tokens=tree.height + 1) for _ in range(runs)]
    def theirs():
        law = torch.zeros_like(tree.prob)
        for found in asyncio.run(populations_of_theirs()):
            for text, weight in zip(found.contexts, found.normalized_weights):
                law[int("".join(str(x) for x in text[:-1]), 2) - len(tree.leaves)] += weight / runs
        laws["theirs"] = law
    def ours(): laws["ours"] = smc_law(tree, particles, 100 * runs, torch.Generator().manual_seed(0), ess=0.)[0]
    row = rates(what, ours, 100 * runs, theirs, runs, "runs", repeats=2)
    apart, noise = total_variation(laws["ours"], laws["theirs"]), sampling_noise(laws["ours"], runs, torch.Generator().manual_seed(0))
    return row | dict(what=f"{what}; laws {apart:.3f} apart, {runs} draws differ from theirs by {noise:.3f}")


def language():
    "SmolLM2: walks with key-value stacks and a memo, beside recomputation."
    from llmwatch_course.vgb.lm_walk import bench_rows
    return bench_rows()
