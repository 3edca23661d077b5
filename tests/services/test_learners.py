"""Students and teachers of jobs: found, checked, placed, kept while a job needs them, and part of what names the work."""

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import update

from models import Job, Model
from services import catalog, db, jobs, queue, retention
from services.errors import ConflictError, InvalidError, RejectedError
from services.retention import Place

TENANT = "default"
TEACHING = ({"type": "distill"},)


@pytest.fixture
def ask(service):
    """Submit a job on ready networks and data, with a student or a teacher by id."""
    dataset = service.ready_dataset()

    def make(passes=TEACHING, model=None, **named):
        return service.submit(replace(service.request(model, dataset, passes=passes), **named)).job

    return make


def test_both_are_placed_beside_the_network_and_named_to_the_process(service, ask):
    model, student, teacher = (service.ready_model(content=name) for name in (b"net", b"student", b"teacher!"))
    service.write(lambda session: setattr(session.get_one(Model, student.id), "name", "tiny"))
    job = ask(model=model, student_id=student.id, teacher_id=teacher.id)
    assert (job.student_id, job.teacher_id) == (student.id, teacher.id)
    claim = service.claim()
    sizes = {item.path: item.size for item in claim.inputs}
    assert {path: sizes[path] for path in sizes if not path.startswith("data")} == {
        "model/model.onnx": 3,
        "student/model.onnx": 7,
        "teacher/model.onnx": 8,
    }
    assert claim.order.payload["names"] == {"student": "tiny", "teacher": "net"}
    # What comes out was made of the student.
    output = service.read(lambda session: session.get_one(Model, job.output_model_id))
    assert (output.parent_id, output.name) == (student.id, "tiny (compress)")


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_one_that_is_not_there_not_ours_or_not_ready_is_pointed_at(service, ask, role):
    other = service.upload(tenant="other")
    for named in ("mdl_unknown", other.id):
        with pytest.raises(InvalidError) as refused:
            ask(**{f"{role}_id": named})
        assert [error.pointer for error in refused.value.errors] == [f"/{role}"]
    unchecked = service.upload()
    with pytest.raises(ConflictError, match=f"The {role} is checking") as conflict:
        ask(**{f"{role}_id": unchecked.id})
    assert conflict.value.exact_code == f"{role}_not_ready"


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_one_that_gives_something_else_is_refused_with_what_differs(service, ask, role):
    wrong = service.ready_model()

    def rename(session):
        row = session.get_one(Model, wrong.id)
        row.inspection = {**row.inspection, "outputs": [{"name": "scores", "dtype": "float32", "shape": ["N", 2]}]}

    service.write(rename)
    with pytest.raises(RejectedError, match=f"The {role}'s outputs are scores, the network's logits") as refused:
        ask(**{f"{role}_id": wrong.id})
    assert refused.value.exact_code == "spec_invalid"


def test_one_that_no_step_is_for_is_refused(service, ask):
    student = service.ready_model()
    with pytest.raises(RejectedError, match="names a student, but no step of its recipe teaches"):
        ask(passes=({"type": "simplify"},), student_id=student.id)


def test_another_student_or_teacher_is_other_work_and_another_request(service, ask):
    model, one, other = service.ready_model(), service.ready_model(), service.ready_model()
    names = [{}, {"student_id": one.id}, {"student_id": other.id}, {"teacher_id": one.id}, {"teacher_id": other.id}]
    keys = [ask(model=model, **named).cache_key for named in names]
    assert len(set(keys)) == len(names)
    assert ask(model=model, student_id=one.id).cache_key == keys[1]
    request = replace(service.request(model, service.ready_dataset(), passes=TEACHING), student_id=one.id)
    first = service.submit(request, idempotency_key="once")
    assert service.submit(request, idempotency_key="once").job.id == first.job.id
    with pytest.raises(RejectedError, match="another request"):
        service.submit(replace(request, student_id=None, teacher_id=one.id), idempotency_key="once")


def test_they_stay_as_long_as_a_job_needs_them(service, ask):
    student, teacher = service.ready_model(), service.ready_model()
    job = ask(student_id=student.id, teacher_id=teacher.id)
    for row in (student, teacher):
        with pytest.raises(ConflictError, match=job.id):
            service.write(lambda session, row=row: catalog.delete_model(session, service.store, TENANT, row.id))
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    service.write(lambda session: catalog.delete_model(session, service.store, TENANT, student.id))


def test_a_network_that_a_job_made_stays_while_another_learns_from_it(service, ask):
    made = ask()
    assert service.finish(service.claim())
    output_id = service.job(made.id).output_model_id
    learns = ask(teacher_id=output_id)
    long_ago = service.read(db.now) - timedelta(days=400)
    service.write(lambda session: session.execute(update(Job).where(Job.id == made.id).values(finished_at=long_ago)))
    place = Place(service.database, service.store, service.settings.data_dir)
    settings = service.settings.model_copy(update={"keep_jobs_days": 1})
    retention.apply(place, settings)
    assert service.job(made.id).status == "succeeded"
    assert {item.path for item in service.claim().inputs} >= {"teacher/model.onnx"}
    assert service.job(learns.id).teacher_id == output_id


def test_a_job_that_is_tried_again_has_them_too(service, ask):
    student, teacher = service.ready_model(), service.ready_model()
    job = ask(student_id=student.id, teacher_id=teacher.id)
    service.write(lambda session: jobs.cancel(session, TENANT, job.id))
    again = service.write(lambda session: jobs.retry(session, TENANT, job.id)).job
    assert (again.student_id, again.teacher_id) == (student.id, teacher.id)
    with service.database.transaction() as session:
        unit = queue.claim_next(
            session, service.messages.sent[-1][1], worker_id="w", lease_s=30, queues=["run.cpu.train"]
        )
    assert {"student/model.onnx", "teacher/model.onnx"} <= {item.path for item in unit.inputs}
