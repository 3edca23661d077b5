"""What a search does next: on a made-up world in which costs and losses follow from a point, so that a whole search takes no time."""

import math
from pathlib import Path

import pytest

from engine.errors import ModelUnsupportedError
from engine.gate import Gate
from engine.graph import io
from engine.report.values import Interval, Quality, Ratio
from engine.search import cascade, measuring
from engine.search.architecture import Architecture
from engine.search.cascade import next_turn
from engine.search.clock import Clock
from engine.search.feasibility import Original
from engine.search.ledger import Ledger, in_float
from engine.search.library import DamagePart, TimesPart
from engine.search.story import tell_story
from engine.search.structure import structure_of
from engine.search.task import Task, key_of
from engine.search.terms import Timed, Times
from engine.search.turn import Finish, MeasureVariants, TryProposals
from engine.search.values import Point, Told, TrialValues
from engine.search.variants import Variant
from engine.spec import read_spec
from engine.target import Target

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "fashion-mnist" / "residual_cnn.onnx"
_SPEED = {"float32": 1.0, "static": 0.55}
_SLOW = 0.3
_STORED = {"float32": 1.0, "static": 0.27}


class World:
    """A network whose candidates cost and lose what simple laws say; training halves a loss every `halves_s` seconds.

    slow: a layer that takes so much more of the time with integers than in floats, as a share of the whole network's.
    error: standard error of a loss: of the few samples that there are to choose by.
    """

    def __init__(self, *, halves_s=8.0, loses=1.0, trial_s=2.0, around_s=0.0, slow=None, error=0.0005):
        self.halves_s, self.loses, self.trial_s, self.around_s, self.slow = halves_s, loses, trial_s, around_s, slow
        self.error = error
        self.model = io.load(EXAMPLE)

    def asked(self, *, drop=0.01, confidence=0.5, gates=(), seconds=300.0, trials=36, **more):
        limit = Gate(metric="top1", rule="max_drop", value=drop, confidence=confidence)
        goal = {"minimise": "latency", **more.pop("goal", {}), "subject_to": [limit.model_dump(), *gates]}
        return read_spec(
            {
                "goal": goal,
                "budget": {"max_seconds": seconds, "max_trials": trials},
                "space": {"precisions": ["float32", "static"], "ranks": []},
                **more,
            }
        )

    def task(self, spec):
        architecture = Architecture.of(self.model, spec.space, Target())
        return Task(spec, architecture, Original(750_000, 186_000, architecture.macs))

    def piece(self, part, task):
        """Give what measuring a part of the library gives."""
        kind, _, rest = part.partition(":")
        architecture = task.architecture
        if kind == "structure":
            return measuring.measure(part, self.model, architecture, None)
        if kind == "times":
            return TimesPart(times=self._times(rest.partition(":")[0])).model_dump(mode="json")
        variants = {
            "group": lambda: [
                Variant(kind="width", subject=rest, value=kept, damage=self.damage(Point(widths={rest: kept}), task))
                for kept in measuring.measured_widths(architecture, rest)
            ],
            "blocks": lambda: [
                Variant(kind="block", subject=name, damage=self.damage(Point(dropped=(name,)), task))
                for name in architecture.blocks
            ],
            "precision": lambda: [Variant(kind="precision", subject=rest, damage=0.002)],
        }[kind]()
        return DamagePart(variants=tuple(variants)).model_dump(mode="json")

    def _times(self, precision):
        structure = self._structure
        shares = {term.name: term.macs_at({}, structure.full) for term in structure.terms}
        total = sum(shares.values())
        terms = {name: _SPEED[precision] * each / total for name, each in shares.items()}
        for term in structure.terms:
            if self.slow and term.layer == self.slow and precision == "static":
                terms[term.name] += _SLOW
        whole = Timed(
            ratio=sum(terms.values()),
            size_bytes=round(750_000 * _STORED[precision]),
            ms=1.0,
            kernels_ms=1.0,
            terms=terms,
        )
        return Times(precision=precision, networks=(whole,))

    def damage(self, point, task):
        architecture = task.architecture
        gone = sum((1 - kept / architecture.groups[name].size) ** 2 for name, kept in point.widths.items())
        return 0.05 * self.loses * (gone + 1.5 * len(point.dropped))

    def try_it(self, number, proposal, task, told):
        """Give what a trial gives."""
        by_number = {each.number: each for each in told}
        at, trained = proposal, proposal.train_s
        while at.inherits is not None:
            at = by_number[at.inherits].proposal
            trained += at.train_s
        point, architecture = proposal.point, task.architecture
        lost = 0.06 * self.damage(in_float(point), task) / 0.05 * 0.5 ** (trained / self.halves_s)
        lost += 0.002 if point.precision != "float32" else 0.0
        share = architecture.macs_at(point) / architecture.macs
        ratio = _SPEED[point.precision] * (0.1 + 0.9 * share)
        ratio += _SLOW if self.slow and point.precision == "static" and self.slow not in point.in_float else 0.0
        values = TrialValues(
            size_bytes=round(750_000 * _STORED[point.precision] * share),
            macs=round(architecture.macs * share),
            parameters=round(186_000 * share),
            latency=Ratio(value=ratio, interval=Interval(low=0.98 * ratio, high=1.02 * ratio)),
            p50_ms=2 * ratio,
            quality=(
                Quality(
                    metric="top1",
                    original=0.9,
                    compressed=0.9 - lost,
                    difference=-lost,
                    interval=Interval(low=-lost - 2 * self.error, high=-lost + 2 * self.error),
                    standard_error=self.error,
                    samples=10_000,
                    output="scores",
                    kind="classes",
                ),
            ),
            seconds=self.trial_s + proposal.train_s + (self.around_s if proposal.train_s else 0.0),
        )
        return Told(number=number, proposal=proposal, state="succeeded", values=values, seconds=values.seconds)

    def search(self, spec, *, workers=1, trains=True, task=None):
        """Do a whole search; give all turns, trials, seconds, and how it ended."""
        task = task or self.task(spec)
        parts = measuring.parts(task.architecture)
        pieces, told, elapsed, turns, memo = {}, [], 0.0, [], {}
        self._structure = structure_of(self.model, task.architecture, 750_000)
        for _ in range(500):
            clock = Clock(elapsed, workers, spec.allowed[0], trains)
            turn = next_turn(task, parts=parts, pieces=pieces, told=told, clock=clock, memo=memo)
            turns.append(turn)
            if isinstance(turn, MeasureVariants):
                for part in turn.parts:
                    pieces[part] = self.piece(part, task)
                elapsed += 0.2 * math.ceil(len(turn.parts) / workers)
            elif isinstance(turn, TryProposals):
                made = [self.try_it(len(told) + at, one, task, told) for at, one in enumerate(turn.proposals, 1)]
                told += made
                elapsed += sum(sorted((each.seconds for each in made), reverse=True)[::workers])
            else:
                return Searched(task, pieces, parts, turns, told, elapsed, turn)
        raise AssertionError("the search never ends")


class Searched:
    def __init__(self, task, pieces, parts, turns, told, elapsed, finish):
        self.task, self.pieces, self.parts = task, pieces, parts
        self.turns, self.told, self.elapsed, self.finish = turns, told, elapsed, finish

    @property
    def chosen(self):
        return next(each for each in self.told if each.number == self.finish.trial)

    def of(self, stage):
        return [each for each in self.told if each.proposal.stage == stage]

    def lost(self, told):
        return -told.values.quality[0].difference


@pytest.fixture(scope="module")
def whole():
    world = World()
    return world.search(world.asked())


def test_the_library_is_measured_before_anything_is_tried(whole):
    kinds = [type(turn) for turn in whole.turns]
    first = kinds.index(TryProposals)
    assert set(kinds[:first]) == {MeasureVariants}
    assert MeasureVariants not in kinds[first:]
    assert set(whole.pieces) == set(whole.parts)


def test_no_result_costs_more_than_the_best_single_pass(whole):
    [single] = whole.of("single")
    assert single.proposal.point == Point(precision="static")
    assert whole.chosen.values.latency.value <= single.values.latency.value


def test_uniform_cuts_and_cuts_in_depth_stand_beside_the_solvers(whole):
    words = [each.proposal.because for each in whole.told if each.proposal.stage == "round"]
    for opening in ("Uniform", "The solver's best at the predicted damage", "In depth"):
        assert any(each.startswith(opening) for each in words)
    assert {each.proposal.round for each in whole.of("round")} == {0, 1, 2, 3}


def test_what_is_too_lossy_after_the_refit_is_distilled_and_stored_in_the_fastest_precision(whole):
    shorts, fulls, stored = whole.of("short"), whole.of("full"), whole.of("stored")
    assert shorts
    assert fulls
    by_number = {each.number: each for each in whole.told}
    went_on = [each for each in fulls if each.proposal.inherits in by_number]
    assert went_on
    for full in went_on:
        parent = by_number[full.proposal.inherits]
        assert key_of(parent.proposal.point) == key_of(full.proposal.point)
        assert full.proposal.train_s > parent.proposal.train_s / 2
    assert {each.proposal.inherits for each in stored} >= {each.number for each in fulls}
    # Training wins back what no refit does, so that the result is one that was trained.
    assert whole.chosen.proposal.stage == "stored"
    assert whole.lost(whole.chosen) <= 0.01
    refitted = [each for each in whole.told if each.proposal.stage in {"single", "round", "study"}]
    holding = [each.values.latency.value for each in refitted if whole.lost(each) <= 0.01]
    assert whole.chosen.values.latency.value < 0.9 * min(holding)


def test_where_all_that_was_trained_is_no_cheaper_than_what_holds_a_candidate_that_was_not_takes_the_time_that_is_left(
    whole,
):
    trained = {key_of(each.proposal.point): each.number for each in reversed(whole.told) if each.proposal.train_s}
    fresh = [each for each in whole.of("full") if trained[key_of(each.proposal.point)] == each.number]
    assert fresh
    [began] = {each.number for each in fresh}
    held = [each for each in whole.told if each.number < began and whole.lost(each) <= 0.01]
    assert whole.chosen.proposal.inherits == began
    assert whole.chosen.values.latency.value < 0.9 * min(each.values.latency.value for each in held)


def test_what_too_few_samples_leave_open_is_trained_until_it_surely_holds():
    world = World(halves_s=60.0, error=0.003)
    done = world.search(world.asked(confidence=0.95, trials=40))
    ledger = Ledger.of(done.task.spec.goal, done.task.original, done.told)
    chosen = ledger.by_number[done.finish.trial]
    refitted = [each for each in ledger.of_stage("single", "round", "study") if each.found.hold == "holds"]
    assert chosen.found.hold == "holds"
    assert chosen.trained_s > 0
    assert chosen.cost < 0.9 * min(each.cost for each in refitted)


def test_what_was_trained_keeps_those_layers_in_float_that_integers_would_slow_down():
    world = World(slow="node_Conv_138")
    done = world.search(world.asked(trials=20))
    stored = done.of("stored")
    assert stored
    assert all("node_Conv_138" in each.proposal.point.in_float for each in stored)
    assert done.chosen in stored


def test_what_was_trained_last_is_stored_too_where_training_takes_more_than_its_own_time():
    world = World(around_s=25.0)
    done = world.search(world.asked(seconds=400, trials=14))
    assert {each.proposal.inherits for each in done.of("stored")} >= {each.number for each in done.of("full")}
    assert done.elapsed <= 400


def test_it_ends_inside_its_budget(whole):
    assert 0.5 * 300 < whole.elapsed <= 300
    world = World(trial_s=20.0)
    slow = world.search(world.asked(seconds=120))
    assert slow.elapsed <= 120 * 1.1
    assert slow.finish.trial is not None


def test_something_is_tried_even_where_measuring_the_parts_took_all_the_time(whole):
    late = Clock(290.0, 1, 300.0, trains=False)
    turn = next_turn(whole.task, parts=whole.parts, pieces=whole.pieces, told=[], clock=late)
    assert isinstance(turn, TryProposals)
    assert [each.stage for each in turn.proposals] == ["single"]
    tried = [whole_trial(whole, 1, turn.proposals[0])]
    ended = next_turn(whole.task, parts=whole.parts, pieces=whole.pieces, told=tried, clock=late)
    assert (type(ended), ended.trial) == (Finish, 1)


def test_the_same_facts_give_the_same_turn_and_the_middle_of_a_round_its_rest(whole):
    clock = Clock(20.0, 4, 300.0, trains=True)

    def turn(told, memo=None):
        return next_turn(whole.task, parts=whole.parts, pieces=whole.pieces, told=told, clock=clock, memo=memo)

    memo: cascade.Memo = {}
    first = turn([])
    assert turn([]) == first == turn([], memo) == turn([], memo)
    made = [whole_trial(whole, number, one) for number, one in enumerate(first.proposals[:3], 1)]
    rest = turn(made, memo).proposals
    assert rest[: len(first.proposals) - 3] == first.proposals[3:]
    assert turn(made).proposals == rest


def whole_trial(whole, number, proposal):
    return World().try_it(number, proposal, whole.task, [])


def test_without_pytorch_the_best_is_stored_with_more_care():
    world = World()
    done = world.search(world.asked(trials=20), trains=False)
    assert not done.of("short")
    assert not done.of("full")
    assert all(each.proposal.train_s == 0 for each in done.told)
    assert done.lost(done.chosen) <= 0.01
    careful = done.of("stored")
    assert all(each.proposal.level == "full" for each in careful)


def test_trials_run_out_before_time_does():
    world = World()
    done = world.search(world.asked(trials=9))
    assert len(done.told) == 9
    assert done.finish.because == "All 9 trials were made."


def test_workers_are_all_given_work():
    world = World()
    done = world.search(world.asked(), workers=4)
    widths = [len(turn.proposals) for turn in done.turns if isinstance(turn, TryProposals)]
    assert max(widths) >= 8
    assert len(done.of("short")) >= 4
    assert done.elapsed <= 300
    assert done.lost(done.chosen) <= 0.01


def test_a_goal_that_cannot_be_met_ends_with_what_comes_nearest():
    world = World(halves_s=1e6)
    spec = world.asked(seconds=100, trials=16, gates=[{"metric": "latency_p50", "rule": "max_ratio", "value": 0.05}])
    done = world.search(spec)
    assert done.finish.trial is not None
    assert done.elapsed <= 100 * 1.1
    # It is the nearest to both limits together, not the fastest nor the most faithful.
    assert done.chosen.values.latency.value < 0.55


def test_of_an_original_that_nothing_beats_nothing_is_made():
    world = World(loses=100.0)
    spec = world.asked(trials=6, drop=0.0001, seconds=100)
    done = world.search(spec, trains=False)
    assert done.finish.trial is None


def test_trials_that_fail_are_not_tried_again(whole):
    failed = [
        each.model_copy(update={"state": "failed", "values": None, "problem": {"message": "no"}})
        for each in whole.of("single") + whole.of("round")
        if each.proposal.round == 0
    ]
    clock = Clock(20.0, 1, 300.0, trains=True)
    turn = next_turn(whole.task, parts=whole.parts, pieces=whole.pieces, told=failed, clock=clock)
    assert not isinstance(turn, Finish)
    tried = {key_of(each.proposal.point) for each in failed}
    assert not tried & {key_of(each.point) for each in turn.proposals}


def test_networks_that_nothing_goes_on_from_are_dropped(whole):
    dropped = {number for turn in whole.turns if isinstance(turn, TryProposals) for number in turn.drop}
    assert dropped
    assert whole.finish.trial not in dropped
    assert not dropped & {each.proposal.inherits for each in whole.told}


def test_a_network_that_cannot_be_read_ends_in_words_and_another_part_does_not(whole):
    clock = Clock(200.0, 1, 300.0, trains=True)

    def turn(pieces):
        return next_turn(whole.task, parts=whole.parts, pieces=pieces, told=[], clock=clock)

    with pytest.raises(ModelUnsupportedError, match="cannot be searched"):
        turn({"structure": {}})
    assert isinstance(turn({**whole.pieces, whole.parts[-1]: {}}), TryProposals)


def test_a_budget_that_is_gone_before_the_network_was_read_ends_with_the_original(whole):
    gone = Clock(310.0, 1, 300.0, trains=True)
    turn = next_turn(whole.task, parts=whole.parts, pieces={"structure": {}}, told=[], clock=gone)
    assert isinstance(turn, Finish)
    assert turn.trial is None
    story = tell_story(whole.task, [], chosen=None, stopped=turn.because, seconds=310.0, met=True)
    assert "The time was used up" in story.stopped
    assert (story.story, story.front) == ((), ())


def test_parts_that_the_goal_needs_come_first():
    parts = ("structure", "times:float16:0", "times:static:0", "blocks:0", "times:float32:0", "precision:weights4")
    fast = cascade.in_order(parts, read_spec({"goal": {"minimise": "latency"}}))
    assert fast[:4] == ["structure", "times:float32:0", "times:static:0", "blocks:0"]
    small = cascade.in_order(parts, read_spec({"goal": {"minimise": "size"}}))
    assert small.index("precision:weights4") < small.index("blocks:0")
