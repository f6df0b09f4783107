# Everything starts here: `make demo` shows Signalbox at work, `make test` checks all of it.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 3000
STAMP := $(VENV)/.ready

# Every run is a process that loads the project: where bytecode may not be written, it is compiled
# anew each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast lint types layers check bench setup setup-torch lock lock-torch image \
	clean help

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make demo      land New York's flights, backfill, train, crown; the UI stays on port 3000
demo: $(STAMP)
	@$(BIN)/signalbox demo --port $(PORT) $(ARGS)

## make test      set-up, checks and the suite; in CI, or with ARGS=--heavy, also what takes longer
test: $(STAMP) check
	@$(BIN)/python -m tests.tools.run $(ARGS)

## make test-fast everything but the daemon and the browser
test-fast: $(STAMP)
	@$(BIN)/pytest -q -n 2 -m "not e2e and not browser and not heavy" $(ARGS)

## make check     lint, format, types, layers, definitions
check: lint types layers
	@$(BIN)/python tests/tools/check_definitions.py

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

layers: $(STAMP)
	@$(BIN)/lint-imports --no-logo

# kill_points is no measurement, and takes an hour.
BENCHMARKS := $(filter-out kill_points,$(basename $(notdir $(wildcard benchmarks/*.py))))

## make bench     the benchmarks, as ratios to a baseline of the same run; which missed their goals
bench: $(STAMP)
	@failed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed, or missed a goal:$$failed" >&2; exit 1; fi

## make setup     the virtual environment, from requirements.lock
setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

## make lock      requirements.lock anew from requirements.in (needs uv)
lock:
	uv pip compile --quiet --generate-hashes --no-strip-extras --no-emit-index-url \
		--python-version 3.11 --custom-compile-command "make lock" requirements.in -o requirements.lock

## make setup-torch  PyTorch too, from requirements-torch.lock; the CPU build, 192 MB
setup-torch: $(VENV)/.ready-torch

$(VENV)/.ready-torch: $(STAMP) requirements-torch.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements-torch.lock
	@touch $@

## make lock-torch   requirements-torch.lock anew; the wheels of TORCH_WHEELS=a folder or a page
TORCH_WHEELS ?= $(PIP_FIND_LINKS)
lock-torch:
	uv pip compile --quiet --generate-hashes --no-strip-extras --no-emit-index-url \
		--python-version 3.11 --custom-compile-command "make lock-torch" \
		--find-links "$(TORCH_WHEELS)" --constraint requirements.lock requirements-torch.in \
		-o requirements-torch.lock

# What the image is made of (.dockerignore). With a change that is in no commit it names none.
INSIDE := Dockerfile .dockerignore pyproject.toml README.md requirements.lock dagster.yaml \
	workspace.yaml platform_assets resources sensors ':!platform_assets/images.lock.yaml'

## make image     the image, on BASE=registry/repository@sha256:..., as IMAGE=registry/repository:tag
image:
	@commit=$$(git rev-parse HEAD) || exit 1; \
	if [ -n "$$(git status --porcelain -- $(INSIDE))" ]; then \
		commit=; echo "the image names no commit, for it has changes that are in none" >&2; \
	fi; \
	buildah bud --timestamp 0 --tag "$(IMAGE)" $(ARGS) \
		--build-arg BASE="$(BASE)" --build-arg BASE_DIGEST="$(lastword $(subst @, ,$(BASE)))" \
		--build-arg GIT_COMMIT="$$commit" \
		--build-arg LOCK_DIGEST="sha256:$$(sha256sum requirements.lock | cut -d' ' -f1)" .

## make clean     forget the home and the virtual environment
clean:
	rm -rf .signalbox $(VENV)
