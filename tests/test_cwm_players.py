"""Arena, value functions, language player, examination, forfeits: who plays, who judges, and what the numbers may say."""
import random, sys
from pathlib import Path
import pytest
import torch
from llmwatch_course.cwm import arena as A, exam as E, forfeits as F, language_player as L, value_functions as V
from llmwatch_course.cwm.contract import TERMINAL, random_game, replay
from llmwatch_course.cwm.games import GAMES, game
from llmwatch_course.foundations.chat import Scripted
from llmwatch_course.foundations.decoder import Config, Decoder, generate
from llmwatch_course.foundations.results import printed

pytest.importorskip("pyspiel")
sys.path.insert(0, str(Path(__file__).parents[1]/"tools"))
connect, mnk = game("connect_four").program(), game("mnk").program()


class Says:
    "Answers what it is told to, and writes down what it was asked."
    def __init__(self, *answers, name="says"): self.name, self.answers, self.turns = name, list(answers), []
    def act(self, turn, rng):
        self.turns.append(turn)
        return self.answers.pop(0)


# --- the arena

def test_a_game_and_what_players_are_told():
    first, second = Says(0, 1, 2), Says(3, 4, name="other")
    played = A.play([first, second], "tic_tac_toe", random.Random(0))
    assert played == A.Played(("says", "other"), [0, 3, 1, 4, 2], [1., -1.], [3, 2])
    assert (played.points(0), played.points(1)) == (1, 0)
    turn = second.turns[1]
    assert turn.player == 1 and turn.actions == [0, 3, 1] and [a for _, a in turn.history] == [None, 3, None, None]
    assert turn.history[-1][0]["board"] == ["x", "x", ".", "o", ".", ".", ".", ".", "."] and not hasattr(turn, "legal")


@pytest.mark.parametrize("wanted", [0, 9, -1, None, "4", 2.5])
def test_an_illegal_answer_forfeits(wanted):
    played = A.play([Says(0), Says(wanted)], "tic_tac_toe", random.Random(0))
    assert played.forfeit == 1 and played.wanted == wanted and played.returns is None and played.actions == [0]
    assert (played.points(0), played.points(1), played.moves) == (1, 0, [1, 1])


def test_hidden_games_show_no_moves():
    first, second = Says(0), Says(0)
    played = A.play([first, second], "kuhn", random.Random(3))
    assert first.turns[0].actions is None and second.turns[0].actions is None
    for seat, player in enumerate((first, second)):
        seen = player.turns[0].history[-1][0]
        assert seen["card"] == played.actions[seat] and "cards" not in seen


@pytest.mark.parametrize("name", [n for n in GAMES if n not in ("backgammon", "bargaining", "gin_rummy")])
def test_random_players_know_the_rules(name):
    for seed in range(3):
        played = A.play([A.RandomPlayer(name), A.RandomPlayer(name, "other")], name, random.Random(seed))
        assert played.forfeit is None and sum(played.returns) == 0


def test_a_bot_of_open_spiel_sits_in():
    table = A.arena([A.SpielPlayer("tic_tac_toe", A.SpielMcts(50)), A.RandomPlayer("tic_tac_toe")], "tic_tac_toe", 6)
    assert table.illegal("OpenSpiel")[0] == 0 and table.score("OpenSpiel").share > 0.5


def test_table_counts_forfeits_apart():
    seats, other = ("a", "b"), ("b", "a")
    games = [A.Played(seats, [], [1., -1.], [1, 1]), A.Played(seats, [], [0., 0.], [1, 1]), A.Played(seats, [], None, [2, 1], 0, 7),
             A.Played(other, [], None, [1, 3], 1, None), A.Played(other, [], [2., 1.], [1, 1])]
    table = A.Table(games)
    assert table.rows() == [dict(first="a", second="b", won=1, drawn=1, lost=0, first_forfeits=1, second_forfeits=0),
                            dict(first="b", second="a", won=1, drawn=0, lost=0, first_forfeits=0, second_forfeits=1)]
    assert table.score("a")[::3] == (1.5 / 5, 5) and table.score("a", "b", forfeits=False)[::3] == (1.5 / 3, 3)
    assert table.score("a").share + table.score("b").share == 1
    assert table.illegal("a") == (2, 8) and table.illegal("b") == (0, 5)
    with pytest.raises(ValueError, match="nobody here is called 'c'"): table.score("c")


def test_both_seats_same_seed_same_table():
    players = [A.RandomPlayer("tic_tac_toe", n) for n in "abc"]
    table = A.arena(players, "tic_tac_toe", 4, seed=5)
    assert len(table.games) == 12 and all(sum(g.seats == s for g in table.games) == 2 for s in (("a", "b"), ("b", "a"), ("c", "a"), ("b", "c")))
    assert A.arena(players, "tic_tac_toe", 4, seed=5) == table != A.arena(players, "tic_tac_toe", 4, seed=6)


def test_processes_do_not_change_it():
    pytest.importorskip("joblib")
    players = [A.RandomPlayer("tic_tac_toe"), A.SearchPlayer("tic_tac_toe", 10, "memoised")]
    assert A.arena(players, "tic_tac_toe", 4, jobs=2) == A.arena(players, "tic_tac_toe", 4)


def test_ray_as_back_end():
    ray = pytest.importorskip("ray", reason="Ray is not installed; it is only needed to spread a tournament over a cluster")
    joblib, register = pytest.importorskip("joblib"), pytest.importorskip("ray.util.joblib").register_ray
    ray.init(num_cpus=1, include_dashboard=False)
    register()
    players = [A.RandomPlayer("tic_tac_toe"), A.RandomPlayer("tic_tac_toe", "other")]
    try:
        with joblib.parallel_config(backend="ray"): assert A.arena(players, "tic_tac_toe", 4, jobs=2) == A.arena(players, "tic_tac_toe", 4)
    finally: ray.shutdown()


@pytest.mark.parametrize("call, says", [
    (lambda: A.arena([A.RandomPlayer("kuhn")] * 2, "kuhn"), "name of its own"),
    (lambda: A.arena([A.RandomPlayer("kuhn"), A.RandomPlayer("kuhn", "b")], "kuhn", 3), "must be even"),
    (lambda: A.SearchPlayer("kuhn"), "use IsmctsPlayer"),
    (lambda: A.model_of("tic_tac_toe", "fastest"), "did you mean 'fast'"),
    (lambda: A.play([], "connect_fuor", random.Random(0)), "did you mean 'connect_four'"),
    (lambda: L.LanguagePlayer("kuhn"), "no question is written for 'kuhn'")])
def test_what_is_refused(call, says):
    with pytest.raises(ValueError, match=says): call()


@pytest.mark.parametrize("level", ["readable", "memoised", "tables"])
def test_one_seed_one_move_on_all_levels(level):
    pytest.importorskip("numba")
    turn = E.turn_at("tic_tac_toe", [4, 0])
    moves = [A.SearchPlayer("tic_tac_toe", 60, level).act(turn, random.Random(s)) for s in range(3)]
    assert moves == [A.SearchPlayer("tic_tac_toe", 60, "readable").act(turn, random.Random(s)) for s in range(3)]


def test_a_search_in_the_right_program_is_legal_and_in_a_wrong_one_not():
    assert all(row["illegal"] == 0 < row["moves"] for row in A.legality(("tic_tac_toe", "ladder", "kuhn"), 4, 20))
    wide = A.SearchPlayer("connect_four", 20, "memoised", constants={"COLUMNS": 8})
    assert A.arena([wide, A.RandomPlayer("connect_four")], "connect_four", 20).illegal(wide.name)[0] > 0


# --- solved positions

def late(plies, n, seed=0):
    rng = random.Random(seed)
    while n:
        actions = random_game(connect, rng)[:plies]
        if len(actions) == plies and connect.current_player(replay(connect, actions)) != TERMINAL:
            n -= 1
            yield actions


def plain(state, low=-1, high=1):
    "Negamax on the program's states, without any of the solver's tricks."
    if connect.current_player(state) == TERMINAL: return connect.returns(state)[state["player"]]
    for action in connect.legal_actions(state):
        low = max(low, -plain(connect.apply_action(state, action), -high, -low))
        if low >= high: break
    return low


def test_the_solver():
    pytest.importorskip("numba")
    from connect_four_positions import column_values
    known = {"62245526326552": ([4], 1), "11103356203324": ([2], 1), "5453141026004140": ([2], 1), "23301151026363142026": ([0], 0), "4464502613334651": ([5], 0), "55601343300421503325": ([6], 1)}
    for moves, (columns, value) in known.items():          # solved elsewhere
        assert column_values([int(c) for c in moves]) == [value if c in columns else None if moves.count(str(c)) == 6 else -1 for c in range(7)]
    for actions in late(30, 6):
        state = replay(connect, actions)
        assert column_values(actions) == [-plain(connect.apply_action(state, c)) if c in connect.legal_actions(state) else None for c in range(7)]


def test_the_fixture():
    rows = E.positions()
    assert len(rows) == 600 == len({tuple(p.actions) for p in rows})
    for p in rows:
        state = replay(connect, p.actions)
        assert 8 <= len(p.actions) <= 20 and connect.current_player(state) >= 0 and not E.winning(connect, state, state["player"])
        assert [v is not None for v in p.values] == [c in connect.legal_actions(state) for c in range(7)]
        assert len(set(p.values) - {None}) > 1 and set(p.values) <= {-1, 0, 1, None} and p.best
    assert E.positions(5, 1) == E.positions(5, 1) != E.positions(5, 2)


def test_the_fixture_again_by_the_solver():
    pytest.importorskip("numba")
    from connect_four_positions import column_values
    for p in [p for p in E.positions() if len(p.actions) >= 15][:25]: assert column_values(p.actions) == p.values


def test_the_examination():
    rows = E.positions(40, 3)
    class Chooses:
        name = "chooses"
        def __init__(self, pick): self.pick = pick
        def act_many(self, turns, rng): return [self.pick(p) for p in rows]
    assert E.best_move_share(Chooses(lambda p: p.best[-1]), rows).share == 1
    assert E.best_move_share(Chooses(lambda p: next(c for c in range(7) if p.values[c] not in (None, p.values[p.best[0]]))), rows).share == 0
    assert E.best_move_share(Chooses(lambda p: None), rows).share == 0
    assert 0.2 < E.chance_share(rows) < 0.5
    assert E.best_move_share(A.SearchPlayer("connect_four", 100, "memoised"), rows).share > 0.55


@pytest.mark.parametrize("name", ["tic_tac_toe", "connect_four"])
def test_tactics(name):
    program, tasks = game(name).program(), E.tactics(name, 10, 4)
    assert [t.kind for t in tasks] == ["win"] * 10 + ["block"] * 10 and len({str(replay(program, t.actions)) for t in tasks}) == 20
    for t in tasks:
        state = replay(program, t.actions)
        mover, children = state["player"], {a: program.apply_action(state, a) for a in program.legal_actions(state)}
        if t.kind == "win": assert t.good == [a for a, c in children.items() if program.returns(c)[mover] == 1] and len(t.good) < len(children)
        else: assert t.good == [a for a, c in children.items() if not any(program.returns(program.apply_action(c, b))[mover] == -1 for b in program.legal_actions(c))]
    row = E.missed(A.SearchPlayer(name, 200, "memoised", solve=True), tasks)
    assert row == {"win": 0, "block": 0, "illegal": 0, "tasks": 20}
    assert E.missed(L.LanguagePlayer(name, chat=Scripted(["no"] * 20)), tasks) == {"win": 10, "block": 10, "illegal": 20, "tasks": 20}


# --- the language player

def test_questions_say_what_is_needed():
    turn = E.turn_at("connect_four", [3, 3, 6])
    text = L.LanguagePlayer("connect_four", legal=True).question(turn)
    assert "0 1 2 3 4 5 6\n" + ". . . . . . .\n" * 4 + ". . . O . . .\n. . . X . . X" in text and "You are O." in text and text.endswith("Legal columns: 0, 1, 2, 3, 4, 5, 6.")
    assert "Legal" not in L.LanguagePlayer("connect_four").question(turn)
    text = L.LanguagePlayer("tic_tac_toe", legal=True).question(E.turn_at("tic_tac_toe", [4, 0]))
    assert "O . .\n. X .\n. . ." in text and "You are X." in text and "1, 2, 3, 5, 6, 7, 8" in text


@pytest.mark.parametrize("text, number", [("5", 5), ("Column 3, then 4", 3), ("the 12th", 12), ("", None), ("none", None), ("-2", 2)])
def test_the_first_number_counts(text, number): assert L.number(text) == number


def test_any_chat_model_will_do():
    player = L.LanguagePlayer("tic_tac_toe", chat=Scripted(["cell 4", "?"]))
    assert player.act(E.turn_at("tic_tac_toe", []), random.Random(0)) == 4 and player.act(E.turn_at("tic_tac_toe", []), random.Random(0)) is None


def test_shared_beginnings_change_nothing():
    model, rng = Decoder(Config.tiny()).initialise(torch.Generator().manual_seed(0)), random.Random(0)
    for common in (0, 1, 6):
        prompts = [[9] * common + [rng.randrange(256) for _ in range(rng.randrange(1, 8))] for _ in range(7)]
        for rows in (prompts, prompts[:1], [prompts[0]] * 3):
            assert [a.tolist() for a in L.complete_many(model, rows, 3, batch=3)] == [generate(model, torch.tensor([p]), 3)[0].tolist() for p in rows]


# --- the value function

def test_value_of_the_program_and_its_twin():
    from llmwatch_course.foundations.sandbox import admit
    twin, rng = admit((game("mnk").folder/"kernel.py").read_text()), random.Random(0)
    flip = {"x": "o", "o": "x", ".": "."}
    for _ in range(15):
        actions = random_game(mnk, rng)
        for i in range(len(actions) + 1):
            state, out = replay(mnk, actions[:i]), [0., 0.]
            twin.value(twin.encode(state), out)
            assert out == mnk.value(state) and out[0] == -out[1] and abs(out[0]) <= 1
            if mnk.current_player(state) == TERMINAL: assert out == mnk.returns(state)
            else: assert mnk.value({"board": [flip[m] for m in state["board"]], "player": 1 - state["player"], "winner": None}) == out[::-1]


def test_value_sees_threats():
    def value(xs, os, player): return mnk.value({"board": ["x" if c in xs else "o" if c in os else "." for c in range(36)], "player": player, "winner": None})
    assert value([0, 1, 2], [30, 31], 0)[0] == 0.95                    # completes its line
    assert value([7, 8, 9], [30, 31, 20], 1)[0] == 0.95                # open at both ends: cannot be stopped
    assert value([0, 1, 2], [3, 31], 0)[0] < 0.95                      # stopped already
    assert value([14], [], 1)[0] > value([0], [], 1)[0] > 0            # more lines in the middle


def test_a_heuristic_must_earn_its_place():
    def match(won, lost, other="value"):
        return [A.Played((other, "rollouts"), [], [1., -1.], [1, 1])] * won + [A.Played((other, "rollouts"), [], [-1., 1.], [1, 1])] * lost
    assert V.chosen(A.Table(match(30, 10))) == "value" and V.chosen(A.Table(match(22, 18))) == "rollouts" and V.chosen(A.Table(match(5, 35))) == "rollouts"
    assert V.chosen(A.Table(match(30, 10) + match(38, 2, "better"))) == "better"


def test_entrants():
    players = V.entrants(V.CANDIDATES, simulations=5, level="memoised")
    assert [p.name for p in players] == list(V.CANDIDATES) and [p.options["use_value"] for p in players] == [False, True, True, True, True]
    assert V.against_rollouts({}, 2, 5, level="memoised").games == 2


# --- the paper's tables

def test_forfeits_set_aside():
    count = F.remaining()
    assert (count["claimed"], count["forfeits"], count["remaining"], count["by_play"]) == (9, 3, 6, 4)
    assert set(count["games"]["forfeit"]) == {"Backgammon", "Generalised chess", "Gin rummy"} and count["games"]["lost"] == ["Hand of war"]
    assert sorted(g for games in count["games"].values() for g in games) == sorted(F.GAMES)


def test_the_count_follows_the_rows():
    rows = printed("cwm_play")
    assert all(float(r["low"]) <= float(r["high"]) and r["game"] in F.GAMES for r in rows)
    fewer = [{**r, "low": "3", "high": "3"} if r["game"] == "Backgammon" and "forfeit" in r["quantity"] else r for r in rows]
    assert F.remaining(fewer)["remaining"] == 7
    for name in ("cwm_table4", "cwm_table1_2"): assert all(float(r["printed"]) >= 0 for r in printed(name))
