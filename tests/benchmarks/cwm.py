"""Chapter 6: our searches beside OpenSpiel's, from the empty board on one core, in CPU time; the time to compile; equal strength. About three minutes."""
import os, statistics, subprocess, sys, tempfile, time
from functools import cache, partial
from llmwatch_course.cwm.games import game
from llmwatch_course.cwm.kernels import kernel
from llmwatch_course.cwm.search import search
from llmwatch_course.cwm.tables import compile_tables
from llmwatch_course.foundations.settings import need


def rows() -> list[dict]:
    return [*speeds(), *hidden(), *compiling(), *strength()]


def cpu(call) -> float:
    start = time.process_time(); call()
    return time.process_time() - start


def rates(what, ours, mine, peer, theirs, aim="", repeats=5):
    "Both in turns, after one round to warm up; they take `mine` and `theirs` simulations. Medians a second, median and range of the ratio ours / peer."
    pairs = [(mine / cpu(ours), theirs / cpu(peer)) for _ in range(repeats + 1)][1:]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (round(statistics.median(p)) for p in zip(*pairs))
    return dict(what=what, ours=a, peer=b, ratio=round(statistics.median(ratios), 2), spread=f"{ratios[0]:.2f}-{ratios[-1]:.2f}", unit="simulations/s", aim=aim)


def opponent(name: str, simulations: int, language: str, seed: int = 0):
    "OpenSpiel's MCTS bot without the solver, one random game a leaf, and the position it starts from."
    spiel = need("pyspiel", "games")
    theirs = spiel.load_game(game(name).spiel)
    if language == "C++": bot = spiel.MCTSBot(theirs, spiel.RandomRolloutEvaluator(1, seed), 2**0.5, simulations, 1000, False, seed, False)
    else:
        import numpy as np
        from open_spiel.python.algorithms import mcts
        rng = np.random.RandomState(seed)
        bot = mcts.MCTSBot(theirs, 2**0.5, simulations, mcts.RandomRolloutEvaluator(1, rng), solve=False, random_state=rng)
    return bot, theirs.new_initial_state()


def speeds():
    for name, model, peer, n, m, aim in (
            ("connect_four", "kernel", "C++", 10_000, 10_000, ">= 10"), ("connect_four", "kernel", "Python", 10_000, 1000, ">= 100"), ("tic_tac_toe", "kernel", "C++", 10_000, 10_000, ">= 1"),
            ("tic_tac_toe", "table", "C++", 10_000, 10_000, ">= 1"), ("mnk", "kernel", "C++", 10_000, 3000, ""), ("tic_tac_toe", "memoised program", "Python", 1000, 1000, ">= 1"),
            ("connect_four", "memoised program", "Python", 1000, 1000, ">= 1"), ("mnk", "memoised program", "Python", 1000, 1000, "")):
        yield rates(f"{game(name).title}, {model} beside OpenSpiel {peer}", partial(searches, name, model, n), n * (10 if model != "memoised program" else 1), partial(step, *opponent(name, m, peer)), m, aim)


@cache
def tables(name): return compile_tables(game(name).program())


def searches(name, model, simulations):
    program = game(name).program()
    ours = kernel(name) if model == "kernel" else tables(name) if model == "table" else program
    for seed in range(1 if ours is program else 10): search(ours, program.initial_state(), simulations, seed=seed)


def step(bot, state): bot.step(state)


def hidden(n=10_000):
    "ISMCTS in Leduc poker, first decision after the deal."
    spiel = need("pyspiel", "games")
    from llmwatch_course.cwm.contract import history_of
    from llmwatch_course.cwm.infosets import compile_infosets
    from llmwatch_course.cwm.ismcts import ismcts
    sets = compile_infosets(game("leduc").program())
    history = history_of(sets.program, [0, 3], 0)
    theirs = spiel.load_game("leduc_poker")
    bot = spiel.ISMCTSBot(0, spiel.RandomRolloutEvaluator(1, 0), 13., n, -1, spiel.ISMCTSFinalPolicyType.NORMALIZED_VISIT_COUNT, False, False)
    state = theirs.new_initial_state()
    for action in (0, 3): state.apply_action(action)
    yield rates("Leduc poker, ISMCTS on tables beside OpenSpiel C++", lambda: ismcts(sets, history, 0, n, c=13.), n, lambda: bot.step(state), n, ">= 0.5")


def compiling():
    "Seconds until the first search is done: everything to be compiled, and with the machine code of an earlier process."
    code = "import sys, time; from llmwatch_course.cwm.kernels import kernel; from llmwatch_course.cwm.games import game; from llmwatch_course.cwm.search import search; import numba\n" \
           "s = game('connect_four').program().initial_state(); t = time.process_time(); search(kernel('connect_four'), s, 1); print(time.process_time() - t)"
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = (float(subprocess.run([sys.executable, "-c", code], env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True, check=True).stdout) for _ in range(2))
    yield dict(what="first search in a connect-four kernel: compiled, beside found on disk", ours=round(warm, 2), peer=round(cold, 2), ratio=round(cold / warm, 1), spread="", unit="s", aim="")


def strength(games=300, simulations=1000):
    "Connect four against OpenSpiel's C++ bot, both seats, equal simulations, one random game a leaf, no solver on either side."
    program, fast, points = game("connect_four").program(), kernel("connect_four"), [0, 0, 0]
    for seed in range(games):
        bot, theirs = opponent("connect_four", simulations, "C++", seed)
        state, us = program.initial_state(), seed % 2
        while not theirs.is_terminal():
            action = search(fast, state, simulations, seed=seed).best if theirs.current_player() == us else bot.step(theirs)
            state = program.apply_action(state, action); theirs.apply_action(action)
        points[int(1 - theirs.returns()[us])] += 1
    score = (points[0] + points[1] / 2) / games
    yield dict(what=f"Connect four, {games} games at {simulations:,} simulations against OpenSpiel C++: {points[0]} won, {points[1]} drawn, {points[2]} lost",
               ours=round(100 * score, 1), peer=round(100 - 100 * score, 1), ratio=round(score / (1 - score), 2), spread="", unit="% of points", aim="50 +- 7")
