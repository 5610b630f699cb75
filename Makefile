PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# What the commands below work on; each can be given on the command line of make.
MODEL ?= csiclip
TASK ?=
# the task `prediction` is by default for a frozen encoder and few labels (ConTwin phase II)
MODE ?= $(if $(filter prediction,$(TASK)),probe,finetune)
CKPT ?=
DATA ?=
STUDY ?=
PAPER ?=
RUNS ?=
EXPERIMENT ?=
TRIALS ?= 20
ARGS ?=
WORKERS ?= auto
CONFIG := $(if $(DATA),--config $(DATA))
ENCODERS := $(patsubst experiments/encoders/%.yaml,%,$(wildcard experiments/encoders/*.yaml))
# those with a pre-training
MODELS := $(strip $(foreach name,$(ENCODERS),$(if $(wildcard experiments/$(name).yaml),$(name))))

# The variables that each target takes; any other on the command line is a slip, which `make` would ignore.
TAKES_demo := ARGS
TAKES_test := WORKERS ARGS
TAKES_test-slow := WORKERS ARGS
TAKES_data := DATA ARGS
TAKES_pretrain := MODEL DATA ARGS
TAKES_finetune := TASK MODEL MODE CKPT DATA ARGS
TAKES_study := STUDY
TAKES_refine := ARGS
TAKES_results := STUDY
TAKES_tune := EXPERIMENT TRIALS ARGS
TAKES_dashboard := EXPERIMENT ARGS
TAKES_reproduce := PAPER
TAKES_report := RUNS ARGS
ifeq ($(MAKELEVEL),0)
TAKEN := $(strip $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal))))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
STRANGE := $(filter-out $(TAKEN) PYTHON MAKEFLAGS,$(GIVEN))
ifneq ($(STRANGE),)
$(error $(STRANGE) does not apply to $(MAKECMDGOALS), which takes $(or $(TAKEN),no variable))
endif
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types format data bench pretrain finetune study refine results reproduce tune dashboard report clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY) ## make .venv and install everything into it (minutes, once)

$(READY): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## trace two small cities, pre-train on one, adapt to the other, compare with training from scratch
	$(BIN)/python -m foundation.demo $(ARGS)

# One worker a core with one thread each: faster than one process whose threads wait for each other. A file stays on one worker,
# whose tests share what they trained. If a worker crashes the run ends: another would wait for ever for its file.
PYTEST := OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

test: lint types ## lint, types and the quick tests [WORKERS= ARGS=]
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(READY) ## the tests that take more than some seconds
	$(PYTEST) -m slow $(ARGS)

lint: $(READY) ## check style
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet

types: $(READY) ## check types
	$(BIN)/mypy --no-error-summary

format: $(READY) ## format the code
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format --quiet

data: $(READY) ## generate the sites of DATA=experiments/data/x.yaml in advance [ARGS=]
	$(BIN)/python -m datamodules make --config $(or $(DATA),experiments/csiclip.yaml) $(ARGS)

bench: $(READY) ## measure speed and memory beside peers
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-3000} \
		$(BIN)/python -m foundation.evaluation.bench # the defaults of `lightning`

pretrain: $(READY) ## pre-train MODEL= [DATA=experiments/data/x.yaml ARGS=]
	$(BIN)/lightning fit --config experiments/$(MODEL).yaml $(CONFIG) $(ARGS)

# Without CKPT, the newest finished pre-training of MODEL is adapted; if there is none, one is made first, on the data of its own experiment.
finetune: $(READY) ## adapt to TASK= [MODEL= MODE=finetune|probe|scratch|control CKPT= DATA= ARGS=]
	@test -n "$(TASK)" || { echo "error: TASK is missing: give one, such as make finetune TASK=beam" >&2; exit 2; }
	@test -f experiments/finetune/$(TASK).yaml || { echo "error: no experiments/finetune/$(TASK).yaml; tasks:" \
		"$(patsubst experiments/finetune/%.yaml,%,$(wildcard experiments/finetune/*.yaml))" >&2; exit 2; }
	@case "$(MODE)" in probe|finetune) ;; *) test -z "$(CKPT)" || \
		{ echo "error: CKPT is for MODE=probe or finetune: MODE=$(MODE) starts from new weights" >&2; exit 2; }; esac
	@case "$(MODE)" in probe|finetune) file=experiments/$(MODEL).yaml; models="$(MODELS)";; \
		*) file=experiments/encoders/$(MODEL).yaml; models="$(ENCODERS)"; esac; \
	test -n "$(CKPT)" || grep -qs '^model:' "$$file" || { echo "error: no $$file for MODEL=$(MODEL) and MODE=$(MODE); models: $$models" >&2; exit 2; }
	@set -- --config "experiments/encoders/$(MODEL).yaml"; \
	newest() { ls -t runs/$(MODEL)/*/$$1 2>/dev/null | head -n 1; }; \
	case "$(MODE)" in probe|finetune) \
		checkpoint="$(CKPT)"; finished="$$(newest summary.json)"; stopped="$$(newest checkpoints/last.ckpt)"; \
		if [ -z "$$checkpoint" ] && [ -z "$$finished" ]; then \
			test -z "$$stopped" || { echo "error: the pre-training of $$stopped was stopped: finish it with make pretrain" \
				"MODEL=$(MODEL) ARGS='--ckpt_path last', or give CKPT=" >&2; exit 2; }; \
			$(BIN)/python -m foundation.dry_run experiments/$(MODEL).yaml --config experiments/finetune/$(TASK).yaml \
				$(CONFIG) --model.mode $(MODE) $(ARGS) || exit; \
			$(MAKE) --no-print-directory pretrain ARGS= DATA= || exit; finished="$$(newest summary.json)"; \
		fi; \
		set -- --model.checkpoint "$${checkpoint:-$${finished%summary.json}checkpoints/best.ckpt}"; \
	esac; \
	set -x; $(BIN)/lightning fit --config experiments/finetune/$(TASK).yaml $(CONFIG) \
		--experiment $(TASK)_$(MODE) --model.mode $(MODE) "$$@" $(ARGS)

study: $(READY) ## run STUDY=, the name of a YAML below experiments/studies/, and print its table
	$(BIN)/python -m foundation.studies.run "$(STUDY)"

refine: $(READY) ## train on a digital twin, choose links of the real world, refine, keep what is better [ARGS=]
	$(BIN)/python -m foundation.studies.run refine $(ARGS)

results: $(READY) ## collect STUDY="demo views" into experiments/results.csv, and rebuild RESULTS.md
	$(BIN)/python -m foundation.studies.results $(STUDY)

tune: $(READY) ## search the settings of EXPERIMENT=, a YAML in experiments/tune/, until there are TRIALS= runs [ARGS=]
	@test -f "experiments/tune/$(EXPERIMENT).yaml" || { echo "error: EXPERIMENT is missing or unknown: give one, such as make tune EXPERIMENT=beam;" \
		"there are: $(patsubst experiments/tune/%.yaml,%,$(wildcard experiments/tune/*.yaml))" >&2; exit 2; }
	$(BIN)/python -m foundation.tuning.tune experiments/tune/$(EXPERIMENT).yaml --trials $(TRIALS) $(ARGS)

dashboard: $(READY) ## a W&B workspace of the runs [EXPERIMENT= ARGS=]
	$(BIN)/python -m foundation.studies.dashboard $(EXPERIMENT) $(ARGS)

reproduce: $(READY) ## make every row that experiments/results.csv lacks [PAPER=csiclip, or a study]
	$(BIN)/python -m foundation.studies.reproduce $(PAPER)

report: $(READY) ## one HTML page that compares runs, offline [RUNS="runs/demo runs/csiclip" ARGS=]
	$(BIN)/python -m foundation.report $(RUNS) $(ARGS)

clean: ## remove caches; keeps .venv, data and runs
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
