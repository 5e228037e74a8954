"""The lake's objects in an S3 bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from wattmesh_a2a.errors import UnavailableError

_ARCHIVE = "STANDARD_IA"


class S3Storage:
    """See :class:`wattmesh_cloud.lake.storage.LakeStorage`.

    Args:
        bucket: Its name.
        prefix: In front of every name, with ``/`` at its end; may be empty.
        kms_key: Alias or ARN of the key of encryption; without it the bucket's own default holds.
        archive: Storage class of Parquet files; the bucket's life cycle takes them further down.
        client: An S3 client; made from the environment where none is given.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, kms_key: str | None = None, archive: str = _ARCHIVE, client: Any = None
    ) -> None:
        self._client = client or boto3.client("s3")
        self._bucket, self._prefix = bucket, prefix
        self._archive = archive
        self._encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def read(self, name: str) -> bytes | None:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`."""
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            content: bytes = answer["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return None
            raise UnavailableError(f"{name}: {error}") from error
        except BotoCoreError as error:
            raise UnavailableError(f"{name}: {error}") from error
        return content

    def get(self, name: str, target: Path) -> bool:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`."""
        content = self.read(name)
        if content is not None:
            target.write_bytes(content)
        return content is not None

    def put(self, name: str, source: Path) -> None:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`."""
        self.write(name, source.read_bytes())

    def write(self, name: str, content: bytes) -> None:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`; S3 shows an object only when it is whole."""
        more = {"StorageClass": self._archive} if name.endswith(".parquet") else {}
        try:
            self._client.put_object(
                Bucket=self._bucket, Key=self._prefix + name, Body=content, **more, **self._encryption
            )
        except (ClientError, BotoCoreError) as error:
            raise UnavailableError(f"{name}: {error}") from error

    def names(self, prefix: str = "") -> Iterator[str]:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`."""
        try:
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._prefix)
        except (ClientError, BotoCoreError) as error:
            raise UnavailableError(f"{self._bucket}: {error}") from error

    def delete(self, name: str) -> None:
        """See :class:`wattmesh_cloud.lake.storage.LakeStorage`."""
        try:
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)
        except (ClientError, BotoCoreError) as error:
            raise UnavailableError(f"{name}: {error}") from error
