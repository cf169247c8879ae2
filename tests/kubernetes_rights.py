"""Who may do what in a small Kubernetes API: RBAC, worked out from the roles and bindings among its objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kubernetes_objects import Kind, Object, Objects

ADMINS = "system:masters"


@dataclass(frozen=True, slots=True)
class User:
    """Whom a token stands for."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)


@dataclass(frozen=True, slots=True)
class Deed:
    """What somebody wants to do; the namespace is empty for what is of the whole cluster."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


def service_account(namespace: str, name: str) -> User:
    """The user that a service account is."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


def may(objects: Objects, user: User, deed: Deed) -> bool:
    """Whether a role that is bound to the user, there or in the whole cluster, has a rule for it."""
    if ADMINS in user.groups:
        return True
    if deed.group == "authorization.k8s.io" and deed.resource.startswith("self"):
        return True  # everybody may ask about himself
    return any(_covers(rule, deed) for rule in _rules(objects, user, deed.namespace))


def _rules(objects: Objects, user: User, namespace: str) -> Iterator[Object]:
    for binding in _all(objects, "clusterrolebindings"):
        if _names(binding, user):
            yield from _role(objects, "clusterroles", "", binding["roleRef"]["name"])
    for binding in _all(objects, "rolebindings"):
        if namespace and binding["metadata"]["namespace"] == namespace and _names(binding, user):
            reference = binding["roleRef"]
            plural, place = ("roles", namespace) if reference["kind"] == "Role" else ("clusterroles", "")
            yield from _role(objects, plural, place, reference["name"])


def _role(objects: Objects, plural: str, namespace: str, name: str) -> Sequence[Object]:
    role = objects.find(plural, name, namespace)
    return (role or {}).get("rules") or []


def _all(objects: Objects, plural: str) -> Sequence[Object]:
    return objects.list(_kind(objects, plural), "")[0]


def _kind(objects: Objects, plural: str) -> Kind:
    return next(kind for kind in objects.kinds if kind.plural == plural)


def _names(binding: Object, user: User) -> bool:
    for subject in binding.get("subjects") or []:
        match subject["kind"]:
            case "ServiceAccount":
                place = subject.get("namespace") or binding["metadata"].get("namespace", "")
                is_subject = user.name == f"system:serviceaccount:{place}:{subject['name']}"
            case "Group":
                is_subject = subject["name"] in user.groups
            case _:
                is_subject = subject["name"] == user.name
        if is_subject:
            return True
    return False


def _covers(rule: Object, deed: Deed) -> bool:
    def has(key: str, value: str) -> bool:
        values = rule.get(key) or []
        return value in values or "*" in values

    names = rule.get("resourceNames") or []
    return (
        has("verbs", deed.verb)
        and has("apiGroups", deed.group)
        and has("resources", deed.resource)
        and (not names or deed.name in names)
    )
