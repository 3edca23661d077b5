"""Student and teacher of a job: whether they run where the original does, how good the student came, what is said of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelInvalidError, ModelUnsupportedError, SpecInvalidError
from engine.graph import io
from engine.graph.pieces import Pieces
from engine.job.frame import Frame
from engine.measure.quality import Evaluator
from engine.report.values import Learner, StepReport
from engine.runtime import sessions
from engine.runtime.sessions import Feed, Session
from engine.spec import Compress
from engine.target import Target


@dataclass(frozen=True)
class Learners:
    """Those that a job has named."""

    student: Learner | None = None
    teacher: Learner | None = None

    @classmethod
    def of(cls, frame: Frame, target: Target, feed: Feed, original: Session | Pieces, select: Evaluator) -> "Learners":
        """Run each on a feed beside the original; raises SpecInvalidError where one does not run or gives other outputs."""
        student = teacher = None
        if frame.student is not None:
            opened = _opened("student", frame.student, target, feed, original)
            student = _told(frame, "student", frame.student).model_copy(update={"quality": select.evaluate(opened)})
        if frame.teacher is not None:
            _opened("teacher", frame.teacher, target, feed, original)
            teacher = _told(frame, "teacher", frame.teacher)
        return cls(student, teacher)

    def warnings(self, steps: Sequence[StepReport], spec: Compress) -> Iterator[str]:
        """Say so where a student was taught nothing: then the result is what was uploaded."""
        if self.student is None or spec.student_as_it_is:
            return
        teaching = [step for step in steps if spec.recipe.passes[step.index].learns]
        if not any(step.status == "applied" for step in teaching):
            because = next((step.refusal.reason for step in teaching if step.refusal is not None), "no step taught it")
            yield f"The student was not trained, so that its weights are those that it came with: {because}"


def _opened(role: str, path: Path, target: Target, feed: Feed, original: Session | Pieces) -> Session:
    try:
        session = sessions.session(path, target)
        given, wanted = session.run(feed), original.run(feed)
    except (ModelInvalidError, ModelUnsupportedError) as error:
        raise SpecInvalidError(f"The {role} does not run: {error.message}", node=error.node, hint=error.hint) from error
    for name, value in wanted.items():
        if given[name].shape != value.shape:
            raise SpecInvalidError(
                f"Output `{name}` is {[*given[name].shape]} in the {role} and {[*value.shape]} in the network, of the same samples.",
                hint=f"A {role} gives what the network gives: the same outputs by name, type and size.",
            )
    return session


def _told(frame: Frame, role: str, path: Path) -> Learner:
    return Learner(name=frame.names.get(role), facts=io.facts(path))
