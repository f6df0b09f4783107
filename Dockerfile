# The image of webserver, daemon, code location, run workers and steps. `make image` builds it; two
# builds of the same commit on the same base have the same digest (docs/kubernetes.md).
#
# BASE has Debian's python3 3.11 with venv, ca-certificates and libgomp1, and is named by digest.
ARG BASE
FROM ${BASE}

ARG BASE_DIGEST
ARG LOCK_DIGEST
# As in "--no-index --find-links /wheels" where pip shall ask nobody.
ARG PIP_OPTIONS=""
# Only the checks need these: they are most of the size, and nothing that trains imports them.
ARG WITHOUT="playwright kubernetes-validate mypy moto boto3 botocore s3transfer ruff pytest pytest-timeout pytest-xdist hypothesis import-linter grimp pandas-stubs types-psutil types-pyyaml"

LABEL io.signalbox.requirements-lock.digest="${LOCK_DIGEST}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

# What is compiled here is found by its content, not by the time of its file: with the time the
# digest would move, and without it every start would compile anew, for the root is read-only.
RUN --mount=type=bind,source=.,target=/src \
    set -eu; \
    echo "${LOCK_DIGEST#sha256:}  /src/requirements.lock" | sha256sum --check --quiet; \
    export PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0 PIP_ROOT_USER_ACTION=ignore; \
    python3 -m venv /opt/signalbox; \
    awk -v without="${WITHOUT}" \
      'BEGIN { n = split(without, names, " "); for (i = 1; i <= n; i++) out[names[i]] = 1 } \
       /^[a-z0-9]/ { split($1, part, "[[=]"); skip = part[1] in out } !skip' \
      /src/requirements.lock > /tmp/requirements.lock; \
    pip="/opt/signalbox/bin/python -m pip --no-cache-dir --disable-pip-version-check --quiet"; \
    ${pip} install --no-compile --no-deps ${PIP_OPTIONS} --require-hashes -r /tmp/requirements.lock; \
    cp -r /src /tmp/src; \
    ${pip} install --no-compile --no-deps --no-build-isolation --no-index /tmp/src; \
    ${pip} check; \
    find /opt/signalbox -name __pycache__ -prune -exec rm -rf {} +; \
    /opt/signalbox/bin/python -m compileall -q --invalidation-mode unchecked-hash \
      -x '/(tests?|testing|templates)/' /opt/signalbox/lib/python3.11/site-packages || true; \
    rm -rf /tmp/requirements.lock /tmp/src; \
    mkdir -p /var/lib/signalbox; \
    chown 10001:10001 /var/lib/signalbox

# The commit that is inside, for what is recorded of a training; empty where it is none.
ARG GIT_COMMIT=""
ENV SIGNALBOX_GIT_COMMIT="${GIT_COMMIT}"
ENV PATH=/opt/signalbox/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    SIGNALBOX_HOME=/var/lib/signalbox \
    DAGSTER_HOME=/var/lib/signalbox/dagster
WORKDIR /var/lib/signalbox
# A number: a node cannot tell whether a name is root.
USER 10001:10001
CMD ["signalbox", "--help"]
