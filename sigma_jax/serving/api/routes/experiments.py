"""Routes of experiments: start, stop, look."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.exceptions import HTTPException

from sigma_jax.serving.api.context import Admin, PathId, Reader
from sigma_jax.serving.api.models import Id, Rule, Strict, Text
from sigma_jax.serving.api.rules import check_fields
from sigma_jax.serving.experiments.assignment import (
    BUCKET_SECONDS,
    EXPERIMENT,
    Arm,
    Experiment,
    read_experiments,
)
from sigma_jax.serving.experiments.report import ALPHA, make_report

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])


class ArmIn(Strict):
    """An arm: what its users get in place of the service's own settings."""

    name: Id
    share: float = Field(gt=0, le=1, description="A share of all users.")
    export: Annotated[Text, Field(max_length=256)] = Field(
        default="", description="Name of an export of --arm_exports; empty: the service's own."
    )
    lists: dict[Id, Annotated[Text, Field(max_length=10_000)]] = Field(
        default_factory=dict, max_length=20, description="Name of a list: its instruction."
    )
    rules: dict[Id, Rule] = Field(default_factory=dict, max_length=100)
    ranking: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        max_length=10,
        description="reranks, exclude_seen, temperature, sigma, fusion, normaliser, num_retrieved.",
    )


class ExperimentIn(Strict):
    """An experiment. The first arm is the control."""

    arms: Annotated[list[ArmIn], Field(min_length=2, max_length=10)]
    salt: Annotated[Text, Field(max_length=256)] = Field(
        default="", description="Splits the users; empty: the name of the experiment."
    )
    bucket_seconds: int = Field(
        default=BUCKET_SECONDS, ge=1, le=86_400, description="A list is logged once in it."
    )


class ExperimentOut(ExperimentIn):
    """An experiment and its times."""

    started: float = Field(description="Unix seconds.")
    stopped: float | None = Field(description="Unix seconds; null: it runs.")


@router.get("")
def get_experiments(tenant: Reader) -> dict[str, ExperimentOut]:
    """All experiments by name."""
    found = read_experiments(tenant.service.store)
    return {name: shown(experiment) for name, experiment in found.items()}


@router.put("/{name}", status_code=201)
def start(tenant: Admin, name: PathId, body: ExperimentIn) -> ExperimentOut:
    """Starts an experiment. One that has started keeps its arms: stop it and start another."""
    if tenant.service.store.document(EXPERIMENT, name) is not None:
        raise HTTPException(409, f"there is an experiment {name!r}; an experiment never changes")
    for arm in body.arms:
        check_fields(arm.rules)
        if not arm.export:  # another export has items of its own
            tenant.service.check_rules(arm.rules)
    arms = tuple(
        Arm(
            arm.name,
            arm.share,
            arm.export,
            arm.lists,
            {rule: fields.model_dump() for rule, fields in arm.rules.items()},
            arm.ranking,
        )
        for arm in body.arms
    )
    now = tenant.service.clock()
    experiment = Experiment(name, arms, body.salt, body.bucket_seconds, now)
    tenant.arms.check(experiment)
    tenant.service.store.put_document(EXPERIMENT, name, experiment.to_json())
    tenant.arms.running.forget()
    return shown(experiment)


@router.post("/{name}/stop")
def stop(tenant: Admin, name: PathId) -> ExperimentOut:
    """Ends an experiment. Its users get the service's own settings; its exposures stay."""
    fields = tenant.service.store.document(EXPERIMENT, name)
    if fields is None:
        raise HTTPException(404, f"there is no experiment {name!r}")
    if fields["stopped"] is None:
        fields = {**fields, "stopped": tenant.service.clock()}
        tenant.service.store.put_document(EXPERIMENT, name, fields)
        tenant.arms.running.forget()
    return shown(Experiment.from_json(fields))


@router.delete("/{name}", status_code=204)
def delete(tenant: Admin, name: PathId) -> None:
    """Deletes an experiment that was stopped, and its exposures."""
    fields = tenant.service.store.document(EXPERIMENT, name)
    if fields is None:
        raise HTTPException(404, f"there is no experiment {name!r}")
    if fields["stopped"] is None:
        raise HTTPException(409, f"the experiment {name!r} runs; stop it first")
    tenant.service.store.delete_exposures(name)
    tenant.service.store.delete_document(EXPERIMENT, name)


@router.get("/{name}/report")
def report(
    tenant: Admin,
    name: PathId,
    window_hours: Annotated[float, Query(gt=0, le=24 * 365)] = 24.0,
    kinds: Annotated[list[Id], Query(max_length=20)] = [],  # noqa: B006  FastAPI copies it
    alpha: Annotated[float, Query(gt=0, lt=1)] = ALPHA,
) -> dict[str, Any]:
    """Hit rates of the arms and their differences: `python -m sigma_jax.experiment report`."""
    experiment = read_experiments(tenant.service.store).get(name)
    if experiment is None:
        raise HTTPException(404, f"there is no experiment {name!r}")
    made = make_report(
        experiment,
        tenant.service.store,
        window_hours * 3600,
        kinds,
        alpha,
        tenant.service.clock(),
    )
    return made.to_json()


def shown(experiment: Experiment) -> ExperimentOut:
    """The experiment as the API shows it."""
    fields = experiment.to_json()
    del fields["name"]
    return ExperimentOut(**{**fields, "arms": [ArmIn(**arm) for arm in fields["arms"]]})
