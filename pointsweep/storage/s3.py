"""The store on S3, through boto3. Objects appear whole; a request is repeated while what goes wrong
may pass.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from pointsweep.errors import StoreError
from pointsweep.storage.base import NoConditionalWritesError, parts_of
from pointsweep.utils.masking import scrubbed

T = TypeVar("T")

_HINT = "check bucket, AWS_ENDPOINT_URL_S3, and credentials with list, get, put and delete rights"
PART_BYTES = 16 * 2**20  # larger objects travel in parts of this size
# parts of one object in flight: this, and no more, is what an upload may queue
PARALLEL = 4
ATTEMPTS = 8  # of one request; the pauses between them add up to about a minute
PAUSE_S = (0.2, 15.0)  # the first pause and the longest
# refusals with a code below 500 that pass
PASSING = {
    "SlowDown",
    "RequestTimeout",
    "BadDigest",
    "XAmzContentChecksumMismatch",
    "ConditionalRequestConflict",
}


class S3Store:
    """A bucket, or a prefix of one. Objects appear whole by themselves; every one carries the
    sha256 of its bytes.

    Endpoint from AWS_ENDPOINT_URL_S3 and credentials from the usual chain (environment, profile,
    instance or pod role).
    """

    def __init__(self, url: str, attempts: int = ATTEMPTS) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.prefix = "/".join(parts_of(prefix.strip("/")))
        if not self.bucket:
            raise StoreError(
                f"store: {url} names no bucket; allowed: s3://bucket or s3://bucket/prefix"
            )

        self.attempts = attempts
        self.client = _s3_client()

    def __reduce__(self) -> tuple[type[S3Store], tuple[str, int]]:
        # a client cannot travel to another process
        return S3Store, (self.url, self.attempts)

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def location(self, name: str) -> str:
        return f"{self.url}/{name}".rstrip("/")

    def key(self, name: str) -> str:
        """The object's key. Raises ValueError for a name that no folder could have either."""
        return "/".join(part for part in (self.prefix, *parts_of(name)) if part)

    def read(self, name: str) -> bytes:
        data, _ = self.read_version(name)
        return data

    def read_version(self, name: str) -> tuple[bytes, str]:
        """An object's bytes, checked, and its version. Raises FileNotFoundError."""

        def get() -> tuple[bytes, str]:
            response = self.client.get_object(Bucket=self.bucket, Key=self.key(name))
            data: bytes = response["Body"].read()
            expected = response["Metadata"].get("sha256")
            is_whole = len(data) == response["ContentLength"]

            if is_whole and expected:
                is_whole = hashlib.sha256(data).hexdigest() == expected

            if not is_whole:
                raise _DamagedError(
                    f"{self.location(name)}: what arrived is not what was written"
                )

            return data, response["ETag"]

        return self._ask(name, get)

    def write(self, name: str, data: bytes) -> None:
        if len(data) > PART_BYTES:
            self._write_parts(name, data)
            return
        self._ask(name, lambda: self._put(name, data))

    def _put(self, name: str, data: bytes, **conditions: str) -> str:
        digest = hashlib.sha256(data)
        # The server compares: a body that was cut off or changed on the way never becomes an
        # object.
        response = self.client.put_object(
            Bucket=self.bucket,
            Key=self.key(name),
            Body=data,
            ChecksumSHA256=base64.b64encode(digest.digest()).decode(),
            Metadata={"sha256": digest.hexdigest()},
            **conditions,
        )

        version: str = response["ETag"]

        return version

    def _write_parts(self, name: str, data: bytes) -> None:
        target = {"Bucket": self.bucket, "Key": self.key(name)}
        digest = hashlib.sha256(data).hexdigest()

        def create() -> Any:
            return self.client.create_multipart_upload(
                **target, Metadata={"sha256": digest}, ChecksumAlgorithm="SHA256"
            )

        upload = self._ask(name, create)["UploadId"]
        view = memoryview(data)

        def send(number: int) -> dict[str, Any]:
            part = bytes(view[(number - 1) * PART_BYTES : number * PART_BYTES])
            checksum = base64.b64encode(hashlib.sha256(part).digest()).decode()
            identity = {"PartNumber": number, "ChecksumSHA256": checksum}

            def upload_part() -> Any:
                return self.client.upload_part(
                    **target, **identity, UploadId=upload, Body=part
                )

            response = self._ask(name, upload_part)
            return {**identity, "ETag": response["ETag"]}

        try:
            num_parts = -(-len(data) // PART_BYTES)  # rounded up
            with ThreadPoolExecutor(PARALLEL, "s3-part") as pool:
                parts = list(pool.map(send, range(1, num_parts + 1)))

            self._complete(name, upload, parts, digest)
        except BaseException:
            # Parts that nobody sees cost money all the same; gc.py finds those of a killed process.
            with contextlib.suppress(StoreError, FileNotFoundError):
                self.abort(name, upload)

            raise

    def _complete(
        self, name: str, upload: str, parts: Sequence[Mapping[str, Any]], digest: str
    ) -> None:
        def complete() -> Any:
            return self.client.complete_multipart_upload(
                Bucket=self.bucket,
                Key=self.key(name),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )

        try:
            self._ask(name, complete)
        except FileNotFoundError:
            # completed at an attempt whose answer was lost, or lost for good
            _, _, stored_digest = self.stat(name)
            if stored_digest != digest:
                raise

    def list(self, prefix: str) -> list[str]:
        start = f"{self.key(prefix)}/".lstrip("/")

        def ask() -> list[str]:
            names = []
            for page in self._pages(start):
                for folder in page.get("CommonPrefixes", ()):
                    names.append(folder["Prefix"].removeprefix(start))

                for file in page.get("Contents", ()):
                    names.append(file["Key"].removeprefix(start))

            return sorted(names)

        return self._ask(prefix, ask)

    def _pages(self, start: str) -> Any:
        """Return the server's pages of what lies directly below a prefix."""
        paginator = self.client.get_paginator("list_objects_v2")
        return paginator.paginate(Bucket=self.bucket, Prefix=start, Delimiter="/")

    def sizes(self, prefix: str) -> dict[str, int]:
        start = f"{self.key(prefix)}/".lstrip("/")

        def ask() -> dict[str, int]:
            object_sizes = {}
            for page in self._pages(start):
                for file in page.get("Contents", ()):
                    object_sizes[file["Key"].removeprefix(start)] = file["Size"]

            return object_sizes

        return self._ask(prefix, ask)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except FileNotFoundError:
            return False

        return True

    def delete(self, name: str) -> None:
        self._ask(
            name,
            lambda: self.client.delete_object(Bucket=self.bucket, Key=self.key(name)),
        )

    # What a store on a server has besides (base.RemoteStore)

    def stat(self, name: str) -> tuple[int, str, str]:
        """Size in bytes, version (the ETag), and sha256 if the object carries one. Raises
        FileNotFoundError.
        """
        response = self._ask(
            name,
            lambda: self.client.head_object(Bucket=self.bucket, Key=self.key(name)),
        )
        return (
            response["ContentLength"],
            response["ETag"],
            response["Metadata"].get("sha256", ""),
        )

    def write_if(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write what nobody else ever writes, if the object still has this version (None: if there
        is none).

        Returns its new version; None, and nothing is changed, if another one was faster. Raises
        NoConditionalWritesError.
        """
        from botocore.exceptions import ClientError

        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}

        def put() -> str | None:
            try:
                return self._put(name, data, **condition)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 501:
                    raise NoConditionalWritesError(
                        f"{self.location(name)}: this server knows no conditional writes"
                    ) from error
                if status in (404, 412) and code != "NoSuchBucket":
                    return None

                raise

        new_version = self._ask(name, put)
        if new_version is None:
            # Perhaps by ourselves, at an attempt whose answer was lost: then these very bytes are
            # there.
            with contextlib.suppress(FileNotFoundError):
                _, stored_version, digest = self.stat(name)
                if digest == hashlib.sha256(data).hexdigest():
                    return stored_version

        return new_version

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        """Bytes [start, stop) of one version of an object. Raises StoreError if it has been
        replaced.
        """

        def get() -> bytes:
            response = self.client.get_object(
                Bucket=self.bucket,
                Key=self.key(name),
                Range=f"bytes={start}-{stop - 1}",
                IfMatch=version,
            )

            data: bytes = response["Body"].read()
            if len(data) != stop - start:
                raise _DamagedError(
                    f"{self.location(name)}: {len(data)} of {stop - start} bytes arrived"
                )

            return data

        return self._ask(name, get)

    def uploads(self) -> Sequence[tuple[str, str, datetime]]:
        """Multipart uploads that were begun and neither completed nor aborted: name, id, begin."""
        start = self.prefix + "/" * bool(self.prefix)

        def ask() -> Sequence[tuple[str, str, datetime]]:
            paginator = self.client.get_paginator("list_multipart_uploads")
            uploads = []
            for page in paginator.paginate(Bucket=self.bucket, Prefix=start):
                for item in page.get("Uploads", []):
                    if item["Key"].startswith(start):
                        name = item["Key"].removeprefix(start)
                        uploads.append((name, item["UploadId"], item["Initiated"]))

            return uploads

        return self._ask("", ask)

    def abort(self, name: str, upload: str) -> None:
        """Remove the parts of an unfinished upload."""
        self._ask(
            name,
            lambda: self.client.abort_multipart_upload(
                Bucket=self.bucket, Key=self.key(name), UploadId=upload
            ),
        )

    def _ask(self, name: str, request: Callable[[], T]) -> T:
        """The answer to a request, which is made again while what goes wrong may pass. Raises
        FileNotFoundError, StoreError.
        """
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            FlexibleChecksumError,
            HTTPClientError,
            IncompleteReadError,
        )

        broken = (HTTPClientError, IncompleteReadError, FlexibleChecksumError, OSError)

        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except ClientError as error:
                code = error.response["Error"]["Code"]
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if code in ("NoSuchKey", "404", "NotFound", "NoSuchUpload"):
                    raise FileNotFoundError(self.location(name)) from error

                problem = f"{code} ({status})"
                passing = status >= 500 or status == 429 or code in PASSING
            except (BotoCoreError, OSError) as error:
                problem = scrubbed(f"{type(error).__name__}: {error}")
                passing = isinstance(error, broken)

            if not passing or attempt == self.attempts:
                raise StoreError(
                    f"{self.location(name)}: {problem}, after {attempt} attempts; {_HINT}"
                )

            first, most = PAUSE_S
            longest = min(first * 2 ** (attempt - 1), most)
            # many workers must not come back at once
            time.sleep(random.uniform(longest / 2, longest))

        raise AssertionError("attempts is at least 1")


class _DamagedError(OSError):
    pass


def _s3_client() -> Any:
    import boto3
    from botocore.config import Config

    # A session of its own, as the default one is not made for threads; `_ask` repeats: one rule for
    # connections, refusals, bodies.
    settings = Config(
        retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=60,
        max_pool_connections=4 * PARALLEL,
        request_checksum_calculation="when_required",
    )  # fmt: skip

    return boto3.session.Session().client("s3", config=settings)
