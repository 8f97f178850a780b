"""Routes that change what is shown: states of items, rules, versions of the catalogue, draining."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.exceptions import HTTPException

from sigma_jax.runtime.process import locked
from sigma_jax.serving.api.context import Admin, Reader, Tenant, Writer, context_of
from sigma_jax.serving.api.models import Id, NewItems, Rule, State, Version, Versions
from sigma_jax.serving.api.service import RULE
from sigma_jax.serving.bundle import Bundle
from sigma_jax.serving.catalogue_update import add_items, read_items, set_active
from sigma_jax.serving.stores.base import ItemState

router = APIRouter(prefix="/v1")
PathId = Annotated[Id, Path()]


@router.get("/items/{item_id}/state", tags=["items"])
def get_state(tenant: Reader, item_id: PathId) -> State:
    """Whether an item is shown, and until when."""
    state = tenant.service.store.states().get(item_id, ItemState())
    return State(hidden=state.is_hidden, stock=state.stock, expires=state.expires)


@router.put("/items/{item_id}/state", tags=["items"])
def put_state(tenant: Writer, item_id: PathId, body: State) -> State:
    """Hides an item, or sets its stock or its end. Lists that are stored lose it at once."""
    state = ItemState(body.hidden, body.stock, body.expires)
    tenant.service.store.put_states({item_id: state})
    tenant.service.forget_settings()
    return body


@router.get("/rules", tags=["rules"])
def get_rules(tenant: Reader) -> dict[str, Rule]:
    """All rules by name."""
    rules = tenant.service.store.documents(RULE)
    return {name: Rule(**fields) for name, fields in rules.items()}


@router.put("/rules/{name}", tags=["rules"])
def put_rule(tenant: Admin, name: PathId, body: Rule) -> Rule:
    """Creates or replaces a rule."""
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
            return add_items(bundle, before, read_items(str(path), bundle), {})

    return changed(tenant, add, body.comment or f"{len(body.items)} items added")


@router.delete("/catalogue/items/{item_id}", tags=["catalogue"])
def delete_item(tenant: Admin, item_id: PathId) -> Version:
    """Removes an item in a new version of the catalogue. Histories may still hold it."""
    if tenant.service.engine.current.parser.item_index.find(item_id) is None:
        raise HTTPException(404, f"there is no item {item_id!r}")
    return changed(
        tenant, lambda _, before: set_active(before, [item_id], False), f"{item_id} removed"
    )


@router.post("/catalogue/versions/{name}/activate", tags=["catalogue"])
def activate(tenant: Admin, name: PathId) -> Version:
    """Makes a version the active one. No request waits: it is loaded and warmed beside the old."""
    bundle = Bundle.open(tenant.folder)
    if name not in bundle.names():
        raise HTTPException(404, f"there is no version {name!r}")
    with locked(tenant.folder):
        bundle.activate(name)
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=bundle.describe(name)["comment"])


@router.post("/catalogue/rollback", tags=["catalogue"])
def rollback(tenant: Admin) -> Version:
    """Makes the version active that was active before."""
    bundle = Bundle.open(tenant.folder)
    with locked(tenant.folder):
        name = bundle.rollback()
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=bundle.describe(name)["comment"])


@router.post("/drain", tags=["operations"])
def drain(tenant: Admin, request: Request) -> dict[str, str]:
    """Lets `/readyz` fail from now on, so that no new requests are sent to this process."""
    context_of(request).is_draining = True
    return {"status": "draining"}


def changed(tenant: Tenant, change: Any, comment: str) -> Version:
    """A new active version: the active one after `change`."""
    with locked(tenant.folder):
        bundle = Bundle.open(tenant.folder)
        before = bundle.version(bundle.state()["active"])
        version = change(bundle, before)
        name = bundle.add_version(version, comment)
        bundle.activate(name)
    tenant.service.engine.refresh()
    return Version(name=name, is_active=True, comment=comment)
