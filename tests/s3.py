"""An S3-compatible server on the loopback: moto's, one request at a time.

Served by several threads, moto looks whether a key is there and writes it in two steps: its
conditional put would be none. One request at a time it is real: of any number of writers of one
new key exactly one succeeds, which a test shows. What a test on it cannot show is how a server
behaves that answers many requests at once, or fails in the middle of one.

`python -m tests.s3 PORT` serves until it is killed.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

BUCKET = "lake"
READY_SECONDS = 60.0


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """A running server with an empty bucket; the variables by which its clients find it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(f"{url}/{BUCKET}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server did not start")
            time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        process.kill()
        process.wait()


def put_if_absent(variables: Mapping[str, str], key: str, content: bytes) -> bool:
    """Write a key that must not be there yet; whether it was this call that wrote it."""
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=variables["AWS_REGION"],
    )
    try:
        client.put_object(Bucket=BUCKET, Key=key, Body=content, IfNoneMatch="*")
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise
    return True


def _answers(bucket: str) -> bool:
    request = urllib.request.Request(bucket, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def main() -> None:
    # Before moto is imported: it would ask a metadata service for credentials.
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=False)


if __name__ == "__main__":
    main()
