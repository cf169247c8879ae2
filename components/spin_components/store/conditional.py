"""Conditional writes to a bucket: an object is created only if it is new, or replaced only if it is unchanged.

S3, MinIO and current SeaweedFS refuse a PUT whose condition (`If-None-Match`, `If-Match`) does not hold. Other servers
ignore the condition or answer that they do not implement it. There, exactly one of several processes still creates an
object: each stores a ticket beside it, and goes on once its ticket is the only one. A replacement cannot be refused
there; what is replaced must therefore show by its content that it is out of date.
"""

from __future__ import annotations

import time
import uuid

from minio.error import S3Error

from spin_components.errors import StorageAccessError, StorageError
from spin_components.store.bucket import Bucket
from spin_components.store.stored import Guard

_PATIENCE_S = 5.0
"""Time after which a ticket that does not disappear belongs to a process that has ended."""
_POLL_S = 0.1
_NOT_MET = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}
_UNKNOWN = {"NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed"}


class ConditionalWrites:
    """Conditional writes of small objects.

    Args:
        bucket: the bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def create(self, key: str, content: bytes) -> bool:
        """Create an object unless it exists; True for exactly one of several concurrent creators.

        Raises:
            StorageAccessError, StorageError: as `Bucket`.
        """
        ticket = f"{key}-{uuid.uuid4().hex}"
        self._bucket.put(ticket, content)
        try:
            if self._put(ticket, content, {"If-None-Match": "*"}) is False:  # the condition was checked
                return self._put(key, content, {"If-None-Match": "*"}) is True or self._bucket.get(key) == content
            return self._create_alone(key, content, ticket)
        finally:
            self._bucket.delete([ticket])

    def replace(self, key: str, content: bytes, tag: str | None, guard: Guard | None = None) -> bool:
        """Replace an object that still has a tag (None: create it); False where it has changed.

        A server without conditions replaces it in any case. The guard is called before every request, repeated ones
        too, which may come long after the first.
        """
        condition = {"If-None-Match": "*"} if tag is None else {"If-Match": f'"{tag}"'}
        written = self._put(key, content, condition, guard)
        if written is None:
            self._bucket.put(key, content, guard=guard)
            return True
        return written or self._bucket.get(key) == content  # the response to an earlier, successful try was lost

    def _put(self, key: str, content: bytes, condition: dict[str, str], guard: Guard | None = None) -> bool | None:
        """PUT with a condition; False if it does not hold, None if the server does not implement conditions."""
        try:
            self._bucket.put(key, content, condition, guard)
        except StorageAccessError as error:
            code = error.__cause__.code if isinstance(error.__cause__, S3Error) else ""
            if code in _NOT_MET:
                return False
            if code in _UNKNOWN:
                return None
            raise
        return True

    def _create_alone(self, key: str, content: bytes, ticket: str) -> bool:
        """Create an object on a server without conditions, once no other ticket for it is stored.

        A process that sees its ticket alone goes on: any later one sees that ticket, or the object. Of two that see
        each other, the one with the greater name takes its ticket back.
        """
        seen: dict[str, float] = {}
        while True:
            began = time.monotonic()
            keys = {info.key for info in self._bucket.objects(key)}
            if key in keys:
                return False
            others = {other for other in keys - {ticket} if began - seen.setdefault(other, began) < _PATIENCE_S}
            if ticket in keys and not others:
                self._bucket.put(key, content)
                return time.monotonic() - began < _PATIENCE_S  # else another one has counted this ticket as dead
            if not others:
                self._bucket.put(ticket, content)
            elif ticket in keys and ticket > min(others):
                self._bucket.delete([ticket])
            if began - min(seen.values(), default=began) > 4 * _PATIENCE_S:
                raise StorageError(
                    f"s3://{self._bucket.name}/{key}: other processes keep trying to create it; try again"
                )
            time.sleep(_POLL_S)
