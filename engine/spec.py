"""What a job asks for: the validated body, shared by the API, the CLI's recipe file and `python -m engine`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, assert_never

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from engine.gate import Gate, ProfileGate
from engine.goal import Budget, Goal, Space, Strategy, settled
from engine.outputs import OutputDeclaration
from engine.passes import AnyPass
from engine.recipes import RecipeName, named_passes
from engine.target import Target


class _Value(BaseModel):
    # Strict: a JSON number is no boolean, a string no number. JSON has no tuples, so those take arrays.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Limits(_Value):
    """What a job may cost before it is ended with a stable reason."""

    max_pending_s: int = Field(3600, ge=1, le=7 * 86400, description="Longest wait for a free worker, in seconds.")
    max_runtime_s: int = Field(1800, ge=5, le=7 * 86400, description="Longest run, in seconds.")
    max_memory_mb: int = Field(4096, ge=256, le=1 << 20, description="Largest resident set of the job's process, MiB.")


class LeftOut(_Value):
    """A pass of a named recipe that a job does without."""

    type: str
    reason: str = Field(description="Why it cannot be done.")


class Recipe(_Value):
    """Ordered passes; each is checked, verified and measured before the next one starts."""

    # Where there is nothing to say, they are not stored: a worker of the version before does not know them.
    name: RecipeName | None = Field(
        None,
        description="A recipe that the service knows: without `passes` it stands for its own, less what cannot be done.",
        exclude_if=lambda name: name is None,
    )
    passes: tuple[AnyPass, ...] = Field(min_length=1, max_length=32, strict=False)
    left_out: tuple[LeftOut, ...] = Field(
        (),
        max_length=32,
        strict=False,
        description="What the job does without of a recipe by name, and why. The service says it.",
        exclude_if=lambda left_out: not left_out,
    )
    exact: bool = Field(
        default=False,
        description="Keep every step that can be done, whatever it gains or costs by itself: for recipes that were measured as a"
        " whole, such as those of a search's points. Each is verified all the same, and gates judge the result.",
        exclude_if=lambda exact: not exact,
    )


# A recipe is written out, or named: `"small"`, or `{"name": "small"}`.
NamedOrWritten = Annotated[Recipe, BeforeValidator(named_passes, json_schema_input_type=RecipeName | Recipe)]


# By name of the output.
Outputs = Annotated[
    dict[str, OutputDeclaration],
    Field(
        default_factory=dict,
        max_length=256,
        description="What is known of outputs better than it can be told from the network; it goes before the dataset's.",
    ),
]


class Tune(_Value):
    """Look for better session options: threads, execution mode, graph optimisation, spinning, and the provider's own.

    On a GPU also inputs and outputs that stay in its memory, and runs that are recorded and played back.
    """

    max_threads: int | None = Field(
        None, ge=1, le=256, description="Most intra-op threads to try; by default the machine's cores."
    )
    max_seconds: float = Field(
        30.0, ge=1, le=3600, description="How long the options of one network on one target are measured."
    )


class Compress(_Value):
    """Apply a recipe to a network and report what it did, measured beside the original."""

    kind: Literal["compress"] = "compress"
    recipe: NamedOrWritten
    target: Target = Field(default_factory=Target)
    gates: tuple[Gate, ...] = Field(default=(), max_length=32, strict=False)
    outputs: Outputs
    student_as_it_is: bool = Field(
        default=False,
        description="The student is a finished network, such as a search's candidate: the recipe starts from it, and no step has to"
        " teach it.",
        # A worker of the version before does not know it.
        exclude_if=lambda as_it_is: not as_it_is,
    )
    limits: Limits = Field(default_factory=Limits)
    tune: Tune | None = Field(
        None,
        description="Measure each network with the session options that it runs best with, and name them; `{}` for the defaults.",
    )


class Profile(_Value):
    """Measure a network as it is on one or more targets, beside a baseline where there is one."""

    kind: Literal["profile"]
    targets: Annotated[tuple[Target, ...], Field(strict=False)] = Field(min_length=1, max_length=16)
    gates: tuple[ProfileGate, ...] = Field(default=(), max_length=32, strict=False)
    outputs: Outputs
    limits: Limits = Field(default_factory=Limits)
    tune: Tune | None = Field(None, description="Look for better session options too; `{}` for the defaults.")
    measure_seconds: float = Field(10.0, ge=0.1, le=600, description="How long latency is measured on one target.")

    @model_validator(mode="after")
    def _gates_have_targets(self) -> Self:
        providers = {target.provider for target in self.targets}
        for gate in self.gates:
            if gate.provider is not None and gate.provider not in providers:
                raise ValueError(f"a gate on {gate.metric} is for {gate.provider}, which is not among the targets")
        if len(set(map(Target.model_dump_json, self.targets))) < len(self.targets):
            raise ValueError("two of the targets are the same")
        return self


class Search(_Value):
    """Find the network that a goal asks for: which blocks, widths, ranks and precisions are left of the given one.

    Candidates are predicted from measurements of the network's parts, made, refitted and measured beside the original; the best of
    them are distilled. The result is the one that has least of what is minimised among those that hold every limit, or the nearest.
    """

    kind: Literal["search"]
    goal: Goal
    strategy: Strategy = Field(
        "auto",
        description="Who proposes candidates. `auto`: a solver over what was measured of the network's parts, then `tpe`, which that"
        " warms up. `tpe`, `nsga2` and `random` are Optuna's; `gradient` learns widths by gradients and `reinforce` by a policy:"
        " both take PyTorch.",
    )
    budget: Budget = Field(default_factory=Budget)
    space: Space = Field(default_factory=Space)
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="With the same seed the same candidates come in the same order."
    )
    target: Target = Field(default_factory=Target)
    outputs: Outputs
    limits: Limits = Field(default_factory=Limits)
    tune: Tune | None = Field(
        None,
        description="Measure the result and the original with the session options that each runs best with; `{}` for the defaults.",
    )

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The goal's limits: what the verdict is about."""
        return self.goal.subject_to

    @property
    def allowed(self) -> tuple[float, int]:
        """The seconds and trials that it may take."""
        return settled(self.budget, self.goal.effort)


def default_kind(body: Any) -> Any:
    """Give a body its kind where it follows: with a `goal` it is a search, without `kind` a compression, as most jobs are.

    Raises ValueError for a compression with both or neither of `goal` and `recipe`, and for limits of a goal beside it.
    """
    if not isinstance(body, Mapping):
        return body
    kind = body.get("kind", "compress")
    if kind == "compress":
        if "goal" in body and "recipe" in body:
            raise ValueError(
                "give a `goal` or a `recipe`, not both: a goal says what is needed and finds the recipe itself"
            )
        if "goal" not in body and "recipe" not in body:
            raise ValueError(
                'give a `goal`, such as {"minimise": "latency"}, or a `recipe`: the passes to apply, or the name of one'
            )
        kind = "search" if "goal" in body else "compress"
    if kind == "search" and "gates" in body:
        raise ValueError("a goal has its limits in itself: write the gates as `goal.subject_to`")
    return {**body, "kind": kind}


Spec = Compress | Profile | Search
_SPEC: TypeAdapter[Spec] = TypeAdapter(
    Annotated[Compress | Profile | Search, Field(discriminator="kind"), BeforeValidator(default_kind)],
    config=ConfigDict(defer_build=True),
)


def read_spec(body: Any) -> Spec:
    """Give the spec that a JSON value describes; raises pydantic's ValidationError."""
    return _SPEC.validate_python(body)


def targets_of(spec: Spec) -> tuple[Target, ...]:
    """Give every target that a job is to be done on."""
    match spec:
        case Profile():
            return spec.targets
        case Compress() | Search():
            return (spec.target,)
        case _:
            assert_never(spec)


def steps_of(spec: Spec) -> tuple[str, ...]:
    """Name the steps of a job in order: a recipe's passes, or the providers that a profile measures on; a search has none."""
    match spec:
        case Profile():
            return tuple(target.provider for target in spec.targets)
        case Compress():
            return tuple(step.type for step in spec.recipe.passes)
        case Search():
            return ()
        case _:
            assert_never(spec)


def first_training_step(spec: Spec) -> int | None:
    """Give the index of the first step that takes PyTorch, None where none does."""
    match spec:
        case Compress():
            return next((index for index, step in enumerate(spec.recipe.passes) if step.trains), None)
        case Profile() | Search():
            return None
        case _:
            assert_never(spec)


def trains(spec: Spec) -> bool:
    """Say whether a job trains, so that only a worker with PyTorch can do it. A search trains where it can, and does without."""
    return first_training_step(spec) is not None


def recipe_name(spec: Spec) -> RecipeName | None:
    """Give the name of a job's recipe, None where it is written out."""
    return spec.recipe.name if isinstance(spec, Compress) else None


def makes_network(spec: Spec) -> bool:
    """Say whether a job gives a network, and not only figures of one that there is."""
    match spec:
        case Compress() | Search():
            return True
        case Profile():
            return False
        case _:
            assert_never(spec)
