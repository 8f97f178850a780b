"""Routes that change what is shown: rules, versions of the catalogue, models; draining."""

from __future__ import annotations

import contextlib
import errno
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from sigma_jax.runtime.process import locked
from sigma_jax.serving.api.context import Admin, PathId, Reader, Tenant, context_of
from sigma_jax.serving.api.models import (
    Answer,
    Model,
    Models,
    NewItems,
    Preview,
    Rule,
    Tree,
    Version,
    Versions,
)
from sigma_jax.serving.api.service import RULE
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.rollout import Rollout

router = APIRouter(prefix="/v1")


@router.get("/rules", tags=["rules"])
def get_rules(tenant: Reader) -> dict[str, Rule]:
    """All rules by name."""
    rules = tenant.service.store.documents(RULE)
    return {name: Rule(**fields) for name, fields in rules.items()}


@router.put("/rules/{name}", tags=["rules"])
def put_rule(tenant: Admin, name: PathId, body: Rule) -> Rule:
    """Creates or replaces a rule. Its items and categories are those of the catalogue."""
    tenant.service.check_rules({name: body})
    tenant.service.store.put_document(RULE, name, body.model_dump())
    tenant.service.forget_settings()
    return body


@router.delete("/rules/{name}", tags=["rules"], status_code=204)
def delete_rule(tenant: Admin, name: PathId) -> None:
    """Deletes a rule."""
    if not tenant.service.store.delete_document(RULE, name):
        raise HTTPException(404, f"there is no rule {name!r}")
    tenant.service.forget_settings()


@router.get("/catalogue", tags=["catalogue"])
def get_versions(tenant: Reader) -> Versions:
    """The versions of the catalogue, oldest first."""
    bundle = Bundle.open(tenant.folder)
    active = bundle.state()["active"]
    versions = [
        Version(name=name, is_active=name == active, comment=bundle.describe(name)["comment"])
        for name in bundle.names()
    ]
    return Versions(versions=versions)


@router.post("/catalogue/items", tags=["catalogue"], status_code=201)
def post_items(tenant: Admin, body: NewItems) -> Version:
    """Adds items as a new version of the catalogue, which is active at once."""

    def add(bundle: Bundle, before: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = FilePath(folder) / "items.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in body.items), encoding="utf-8")
            try:
                rows = read_items(str(path), bundle)
            except ValueError as error:  # the caller knows no such file
                raise ValueError(str(error).replace(str(path), "items")) from None
            return add_items(bundle, before, rows, {})

    return changed(tenant, add, body.comment or f"{len(body.items)} items added")


@router.delete("/catalogue/items/{item_id}", tags=["catalogue"])
def delete_item(tenant: Admin, item_id: PathId) -> Version:
    """Removes an item in a new version of the catalogue. Histories may still hold it."""
    if tenant.service.engine.current.parser.item_index.find(item_id) is None:
        raise HTTPException(404, f"there is no item {item_id!r}")
    return changed(
        tenant, lambda _, before: set_active(before, [item_id], False), f"{item_id} removed"
    )


@router.post("/catalogue/items/{item_id}/restore", tags=["catalogue"])
def restore_item(tenant: Admin, item_id: PathId) -> Version:
    """Puts a removed item back in a new version of the catalogue."""
    if not tenant.service.knows(item_id):
        raise HTTPException(404, f"there is no item {item_id!r}")
    return changed(
        tenant, lambda _, before: set_active(before, [item_id], True), f"{item_id} restored"
    )


@router.post("/catalogue/versions/{name}/activate", tags=["catalogue"])
def activate(tenant: Admin, name: PathId) -> Version:
    """Makes a version the active one. No request waits: it is loaded and warmed beside the old."""
    bundle = Bundle.open(tenant.folder)
    if name not in bundle.names():
        raise HTTPException(404, f"there is no version {name!r}")
    with writing(tenant.folder):
        bundle.activate(name)
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=bundle.describe(name)["comment"])


@router.post("/catalogue/rollback", tags=["catalogue"])
def rollback(tenant: Admin) -> Version:
    """Makes the version active that was active before."""
    bundle = Bundle.open(tenant.folder)
    with writing(tenant.folder):
        name = bundle.rollback()
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=bundle.describe(name)["comment"])


@router.get("/catalogue/tree", tags=["catalogue"])
def get_tree(tenant: Reader) -> Tree:
    """The SID prefixes of the active version, as far as a page can draw them."""
    return tenant.service.tree()


@router.post("/preview", tags=["catalogue"])
def preview(tenant: Admin, body: Preview) -> Answer:
    """The answer of another version or export, which is loaded beside the active one."""
    folder = tenant.rollout.folder(body.export) if body.export else tenant.folder
    bundle = Bundle.open(folder)
    if body.version and body.version not in bundle.names():
        raise HTTPException(404, f"there is no version {body.version!r}")
    snapshot = tenant.service.engine.loaded(folder, body.version)
    [answer] = tenant.service.at(snapshot).compute([body])
    if isinstance(answer, ValueError):
        raise answer
    return answer


@router.get("/models", tags=["models"])
def get_models(tenant: Reader) -> Models:
    """The exports that may answer: those beside the first one."""
    rollout = tenant.rollout
    return Models(models=[model_of(rollout, name) for name in rollout.names()])


@router.post("/models/{name}/activate", tags=["models"])
def activate_model(tenant: Admin, name: PathId) -> Model:
    """Makes an export the active one. No request waits: it is loaded and warmed beside the old."""
    if name not in tenant.rollout.names():
        raise HTTPException(404, f"there is no model {name!r}")
    tenant.rollout.activate(name)
    return model_of(tenant.rollout, name)


@router.post("/models/rollback", tags=["models"])
def rollback_model(tenant: Admin) -> Model:
    """Makes the export active that was active before. It is still loaded where it was."""
    return model_of(tenant.rollout, tenant.rollout.rollback())


def model_of(rollout: Rollout, name: str) -> Model:
    """An export as the API describes it, by its active version."""
    bundle = Bundle.open(rollout.folder(name))
    return Model(
        name=name,
        model=bundle.fingerprints["sft"],
        items=bundle.describe(bundle.state()["active"])["active_items"],
        is_active=name == rollout.active(),
    )


@router.post("/drain", tags=["operations"])
def drain(tenant: Admin, request: Request) -> dict[str, str]:
    """Lets `/readyz` fail from now on, so that no new requests are sent to this process.

    A process of several tenants is not drained by one of them.
    """
    context = context_of(request)
    if len(context.tenants) > 1:
        raise HTTPException(
            403,
            f"the process serves {len(context.tenants)} tenants, and a key of one may not drain "
            "it; take it out of the load balancer, or stop it with SIGTERM",
        )
    context.is_draining = True
    return {"status": "draining"}


@contextlib.contextmanager
def writing(folder: FilePath) -> Iterator[None]:
    """A context that may change an export. HTTPException 409 if the export is read-only here."""
    try:
        with locked(folder):
            yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        raise HTTPException(
            409,
            "the export is read-only for this process; change it with "
            "`python -m sigma_jax.catalogue` where it can be written",
        ) from error


def changed(tenant: Tenant, change: Any, comment: str) -> Version:
    """A new active version: the active one after `change`."""
    with writing(tenant.folder):
        bundle = Bundle.open(tenant.folder)
        before = bundle.version(bundle.state()["active"])
        version = change(bundle, before)
        name = bundle.add_version(version, comment)
        bundle.activate(name)
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=comment)
