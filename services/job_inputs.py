"""The networks and data that a job names: read together, checked together, and part of what names its work."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

import engine
from models import Dataset, Job, Model


@dataclass(frozen=True)
class JobInputs:
    """The rows. The model may be one that another job is still to make; the others are ready.

    `baseline`: what a profile compares with. `student`: what a compression starts from instead of the model. `teacher`: what a
    student learns from instead of the model. `judge`: a second dataset that the report's quality is judged on.
    """

    model: Model
    baseline: Model | None = None
    student: Model | None = None
    teacher: Model | None = None
    dataset: Dataset | None = None
    judge: Dataset | None = None

    @classmethod
    def of_job(cls, session: Session, job: Job, model: Model) -> "JobInputs":
        """Read those of an accepted job, whose model is at hand."""

        def network(found_id: str | None) -> Model | None:
            return session.get(Model, found_id) if found_id else None

        def data(found_id: str | None) -> Dataset | None:
            return session.get(Dataset, found_id) if found_id else None

        return cls(
            model,
            network(job.baseline_id),
            network(job.student_id),
            network(job.teacher_id),
            data(job.dataset_id),
            data(job.judge_id),
        )

    def inspection(self) -> "engine.Inspection | None":
        """Say what the network is that the recipe works on; None while it is still to be made."""
        network = self.student or self.model
        return None if network.inspection is None else engine.Inspection.model_validate(network.inspection)

    def data(self) -> "tuple[engine.DatasetInspection | None, engine.DatasetInspection | None]":
        """Say what the dataset is, and what the one that judges."""
        described, judging = (
            engine.DatasetInspection.model_validate(each.inspection) if each else None
            for each in (self.dataset, self.judge)
        )
        return described, judging
