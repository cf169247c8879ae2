"""RBAC of the Kubernetes API server of the tests, from its roles and bindings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from support.kubernetes_objects import Kind, Object, Objects

ADMINS = "system:masters"


@dataclass(frozen=True, slots=True)
class User:
    """A user, as identified by a token."""

    name: str
    groups: tuple[str, ...] = ("system:authenticated",)


@dataclass(frozen=True, slots=True)
class Access:
    """A request to authorise; the namespace is empty for cluster-scoped resources."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


def service_account(namespace: str, name: str) -> User:
    """The user of a service account."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


def may(objects: Objects, user: User, access: Access) -> bool:
    """Whether a role bound to the user, in the namespace or the cluster, allows the access."""
    if ADMINS in user.groups:
        return True
    if access.group == "authorization.k8s.io" and access.resource.startswith("self"):
        return True  # any user may review their own access
    return any(_covers(rule, access) for rule in _rules(objects, user, access.namespace))


def _rules(objects: Objects, user: User, namespace: str) -> Iterator[Object]:
    for binding in _all(objects, "clusterrolebindings"):
        if _names(binding, user):
            yield from _role(objects, "clusterroles", "", binding["roleRef"]["name"])
    for binding in _all(objects, "rolebindings"):
        if namespace and binding["metadata"]["namespace"] == namespace and _names(binding, user):
            reference = binding["roleRef"]
            plural, scope = ("roles", namespace) if reference["kind"] == "Role" else ("clusterroles", "")
            yield from _role(objects, plural, scope, reference["name"])


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
                subject_namespace = subject.get("namespace") or binding["metadata"].get("namespace", "")
                is_subject = user.name == f"system:serviceaccount:{subject_namespace}:{subject['name']}"
            case "Group":
                is_subject = subject["name"] in user.groups
            case _:
                is_subject = subject["name"] == user.name
        if is_subject:
            return True
    return False


def _covers(rule: Object, access: Access) -> bool:
    def has(key: str, value: str) -> bool:
        values = rule.get(key) or []
        return value in values or "*" in values

    names = rule.get("resourceNames") or []
    return (
        has("verbs", access.verb)
        and has("apiGroups", access.group)
        and has("resources", access.resource)
        and (not names or access.name in names)
    )
