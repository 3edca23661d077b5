"""The loop on a small regression: it learns, judges, keeps the best, stops early, and goes on after an interruption."""

from itertools import islice

import numpy as np
import pytest
import torch

from engine.train import checkpoint, loop
from engine.train.batches import Stream


class Clock:
    """Seconds that pass by being looked at."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def __call__(self):
        self.now += self.tick
        return self.now


class Regression:
    """Learn a matrix from noisy products; samples to choose on are others."""

    def __init__(self, samples, noise=0.0, count=64):
        random = np.random.default_rng(0)
        self.truth = torch.tensor(random.normal(size=(6, 3)), dtype=torch.float32)
        x = random.normal(size=(count, 6)).astype(np.float32)
        self.x, self.other = torch.tensor(x), torch.tensor(random.normal(size=(64, 6)), dtype=torch.float32)
        self.y = self.x @ self.truth + noise * torch.tensor(random.normal(size=(count, 3)), dtype=torch.float32)
        self.parameters = {"w": torch.nn.Parameter(0.1 * torch.ones(6, 3)), "b": torch.nn.Parameter(torch.zeros(3))}
        self.stream = Stream(samples({"x": x}), 16, seed=1)
        self.broken_after = None
        self.parts = 1

    def batches(self, place):
        return self.stream.from_place(place)

    def losses(self, _place, samples):
        if self.broken_after is not None:
            self.broken_after -= 1
        for part in np.array_split(samples, self.parts):
            error = self.x[part] @ self.parameters["w"] + self.parameters["b"] - self.y[part]
            scale = float("nan") if self.broken_after is not None and self.broken_after < 0 else 1.0
            yield scale * error.square().mean() * (len(part) / len(samples))

    def rest(self):
        pass

    def loss(self):
        error = self.other @ self.parameters["w"] + self.parameters["b"] - self.other @ self.truth
        return float(error.detach().square().mean())

    def quality(self):
        return "r2", 1 - self.loss() / float((self.other @ self.truth).var())


@pytest.fixture
def lesson(feeds_of):
    return lambda **options: Regression(feeds_of, **options)


@pytest.fixture
def around(tmp_path):
    def make(name="one", *, tick=0.1, **more):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return loop.Surroundings(folder, clock=Clock(tick), **more)

    return make


def settings(**changes):
    return loop.Settings(**{"seconds": 1e6, "steps": 300, "learning_rate": 0.5, "patience": 1.0, **changes})


def test_it_learns_and_leaves_the_best_average_in_the_parameters(lesson, around):
    task = lesson()
    record = loop.train(task, settings(), around())
    assert record.improved
    assert (record.stopped, record.steps, record.metric) == ("steps", 300, "r2")
    assert record.best.select_loss < 0.01 * record.points[0].select_loss
    assert task.loss() == pytest.approx(record.best.select_loss, rel=1e-5)
    assert record.points[-1].quality > 0.99
    assert 15 <= len(record.points) <= 25
    assert all(point.train_loss is not None for point in record.points[1:])


def test_the_rate_is_the_one_whose_short_trial_leaves_least(lesson, around):
    record = loop.train(lesson(), settings(learning_rate=None), around())
    assert set(record.tried) == set(loop.RATES)
    # Nothing is learnt yet, so the largest steps get furthest.
    assert record.learning_rate == max(loop.RATES) == min(record.tried, key=record.tried.get)


def test_parts_of_a_batch_add_up_to_it(lesson, around):
    whole, cut = lesson(), lesson()
    cut.parts = 4
    loop.train(whole, settings(steps=40), around("whole"))
    loop.train(cut, settings(steps=40), around("cut"))
    assert torch.allclose(whole.parameters["w"], cut.parameters["w"], atol=1e-4)


def test_the_seed_decides(lesson, around):
    one, other = lesson(), lesson()
    loop.train(one, settings(steps=60), around("one"))
    loop.train(other, settings(steps=60), around("other"))
    assert torch.equal(one.parameters["w"], other.parameters["w"])


class InterruptedTrainingError(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("rate", [0.05, None])
def test_after_an_interruption_it_ends_as_if_there_had_been_none(lesson, around, rate):
    whole = lesson()
    expected = loop.train(whole, settings(learning_rate=rate), around("whole"))

    def die(_share, message):
        if message.startswith("step") and int(message.split()[1]) >= 200:
            raise InterruptedTrainingError

    with pytest.raises(InterruptedTrainingError):
        loop.train(lesson(), settings(learning_rate=rate), around("cut", tell=die))
    assert (around("cut").folder / "training.pt").exists()
    again = lesson()
    record = loop.train(again, settings(learning_rate=rate), around("cut"))
    assert 0 < record.resumed_from < 300
    for name, value in whole.parameters.items():
        assert torch.equal(value, again.parameters[name])
    told = [[(point.step, point.select_loss, point.quality) for point in each.points] for each in (expected, record)]
    assert told[0] == told[1]
    assert record.tried == expected.tried


def test_a_checkpoint_of_another_training_is_not_taken(lesson, around):
    loop.train(lesson(), settings(steps=100), around())
    assert (around().folder / "training.pt").exists()
    record = loop.train(lesson(), settings(steps=110), around())
    assert record.resumed_from is None


def test_a_checkpoint_that_cannot_be_read_counts_for_nothing(lesson, around):
    surroundings = around()
    (surroundings.folder / "training.pt").write_bytes(b"half a file")
    assert checkpoint.load(surroundings.folder / "training.pt") is None
    assert loop.train(lesson(), settings(steps=20), surroundings).resumed_from is None


def test_it_ends_early_where_it_only_learns_its_samples_by_heart(lesson, around):
    record = loop.train(lesson(noise=4.0, count=8), settings(steps=4000, patience=0.1), around())
    assert record.stopped == "no_improvement"
    assert record.steps < 4000
    assert record.best.select_loss < record.points[-1].select_loss


def test_what_came_in_is_kept_where_nothing_is_better(lesson, around):
    task = lesson(noise=5.0, count=16)
    with torch.no_grad():
        task.parameters["w"].copy_(task.truth)
    record = loop.train(task, settings(steps=100), around())
    assert not record.improved
    assert record.best.step == 0
    assert torch.equal(task.parameters["w"], task.truth)


def test_a_loss_that_is_no_number_leaves_the_weights_alone_and_ends_it(lesson, around):
    task = lesson()
    task.broken_after = 50
    record = loop.train(task, settings(), around())
    assert record.stopped == "diverged"
    assert record.steps < 100
    assert torch.isfinite(task.parameters["w"]).all()
    assert record.improved


def test_seconds_end_it_and_only_those_of_training_count(lesson, around):
    record = loop.train(lesson(), settings(seconds=12, steps=None), around())
    assert record.stopped == "seconds"
    assert 11 < record.seconds < 14


def test_the_jobs_deadline_ends_it(lesson, around):
    record = loop.train(lesson(), settings(steps=None, seconds=1000), around(deadline=30.0))
    assert record.stopped == "deadline"
    assert record.steps > 20


def test_a_metric_that_takes_long_is_computed_of_the_first_and_the_best_network_alone(lesson, around):
    task, surroundings = lesson(), around()
    plain, asked = task.quality, []

    def slow():
        surroundings.clock.now += 100.0
        asked.append(1)
        return plain()

    task.quality = slow
    record = loop.train(task, settings(seconds=200, steps=None), surroundings)
    assert len(asked) == 2
    known = [point for point in record.points if point.quality is not None]
    assert known == [record.points[0], record.best]
    assert record.best.quality == pytest.approx(plain()[1])
    assert len(record.points) > 10


def test_work_is_held_for_some_seconds_at_a_time(lesson, tmp_path):
    clock, held = Clock(0.1), []

    class Working:
        def __enter__(self):
            self.since = clock.now

        def __exit__(self, *_exc):
            held.append(clock.now - self.since)

    loop.train(lesson(), settings(), loop.Surroundings(tmp_path, working=Working, clock=clock))
    assert len(held) > 10
    assert max(held) < 5


def test_biases_do_not_decay(lesson, around):
    task = lesson()
    task.losses = lambda _place, _samples: islice(
        [0.0 * task.parameters["w"].sum() + 0.0 * task.parameters["b"].sum()], 1
    )
    task.loss = iter(range(1000, 0, -1)).__next__
    with torch.no_grad():
        task.parameters["w"].fill_(1.0)
        task.parameters["b"].fill_(1.0)
    loop.train(task, settings(steps=50, weight_decay=0.5), around())
    assert float(task.parameters["w"].detach().max()) < 0.9
    assert float(task.parameters["b"].detach().min()) == 1.0
