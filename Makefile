PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# What the commands below work on; each can be given on the command line of make.
MODEL ?= csiclip
MODE ?= finetune
TASK ?=
CKPT ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types format data bench pretrain finetune clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY) ## make .venv and install everything into it (minutes, once)

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## trace a small city, pre-train, fine-tune, compare with training from scratch
	$(BIN)/python -m foundation.demo $(ARGS)

test: lint types ## lint, types and the quick tests
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(READY) ## the tests that take more than some seconds
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(READY) ## check style
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet

types: $(READY) ## check types
	$(BIN)/mypy --no-error-summary

format: $(READY) ## rewrite the code in the one style
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

data: $(READY) ## make the sites of the experiments ahead of time
	$(BIN)/python -m datamodules make $(ARGS)

bench: $(READY) ## measure speed against peers
	$(BIN)/python -m foundation.evaluation.benchmark $(ARGS)

pretrain: $(READY) ## pre-train MODEL= [ARGS=]
	$(BIN)/lightning fit --config experiments/$(MODEL).yaml $(ARGS)

finetune: $(READY) ## adapt to TASK= [MODEL= MODE=scratch|probe|finetune CKPT= ARGS=]
	@test -n "$(TASK)" || { echo "error: say which task, such as make finetune TASK=beam" >&2; exit 2; }
	@checkpoint="$(CKPT)"; newest() { ls -t runs/$(MODEL)/*/checkpoints/best.ckpt 2>/dev/null | head -n 1; }; \
	if [ "$(MODE)" != scratch ]; then \
		: "$${checkpoint:=$$(newest)}"; \
		[ -n "$$checkpoint" ] || { $(MAKE) --no-print-directory pretrain MODEL=$(MODEL) ARGS= && checkpoint="$$(newest)"; }; \
	fi; \
	set -x; $(BIN)/lightning fit --then_test true \
		--config experiments/finetune/$(TASK).yaml --config experiments/finetune/mode_$(MODE).yaml \
		--experiment $(TASK)_$(MODE) $${checkpoint:+--model.checkpoint "$$checkpoint"} $(ARGS)

clean: ## remove caches; keeps .venv, data and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
