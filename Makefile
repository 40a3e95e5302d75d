# make demo: digits from nothing to samples. make test: the whole suite. make lint: style and types.
# All install what they need into .venv first. `make demo EXP=folder` for another folder than demo/.
PYTHON ?= python3
EXP ?= demo

.PHONY: demo test lint
.DELETE_ON_ERROR:

main := .venv/bin/python main.py --config digits.yml --exp $(EXP) --doc digits
# With seed 3 the interpolation runs between two different digits.
sample := $(main) --sample --timesteps 20 --seed 3

demo: .venv/runtime
	$(main) --resume_training auto
	$(sample) --fid --num_samples 64 -i samples
	$(sample) --sequence -i sequence
	$(sample) --interpolation -i interpolation
	@echo "Look at the three contact sheets:"
	@echo "  $(EXP)/image_samples/samples.png        64 digits, DDIM in 20 steps"
	@echo "  $(EXP)/image_samples/sequence.png       the predicted digit along 8 chains"
	@echo "  $(EXP)/image_samples/interpolation.png  a path from one digit to another"

# A process a core, one thread each: threads of two networks at once would wait for one another.
test: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=15

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/runtime: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@
