# make demo: samples of the network that lies in models/pretrained, then digits from nothing to samples.
# make gpu OUT=folder: what only a GPU can show, and this card's tables, in under 9 minutes. Without a
# network, `make wheels` elsewhere first: it fills wheels/ with all that a machine with PyTorch may lack.
# make test: the whole suite. make lint: style and types.
# make fuzz, make soak: reliability at length, outside of the suite. All install what they need into .venv first.
# `make demo EXP=folder` for another folder than demo/, DIGITS=file for another config than digits.yml.
PYTHON ?= python3
EXP ?= demo
DIGITS ?= digits.yml

.PHONY: demo fashion digits test lint fuzz soak gpu wheels
.DELETE_ON_ERROR:

main := .venv/bin/python main.py --exp $(EXP)
fashion := $(main) --config fashion_mnist.yml --use_pretrained --sample
digits := $(main) --config $(DIGITS) --doc digits
# With seed 3 the interpolation runs between two different digits.
digits_sample := $(digits) --sample --timesteps 20 --seed 3

demo: digits
	@echo "Look at the contact sheets:"
	@echo "  $(EXP)/image_samples/steps.png          Fashion-MNIST: one x_T a column, S = 5, 10, 20, 50 from above"
	@echo "  $(EXP)/image_samples/clothes.png        the predicted x0 along 8 chains of 20 steps"
	@echo "  $(EXP)/image_samples/path.png           a path between two latents"
	@echo "  $(EXP)/image_samples/samples.png        64 digits of the network just trained, DDIM in 20 steps"
	@echo "  $(EXP)/image_samples/sequence.png       the predicted digit along 8 chains"
	@echo "  $(EXP)/image_samples/interpolation.png  a path from one digit to another"

fashion: .venv/runtime
	$(fashion) --fid --timesteps 5 10 20 50 --num_samples 16 -i steps
	$(fashion) --sequence --timesteps 20 -i clothes
	$(fashion) --interpolation --between 8 9 --timesteps 50 -i path

# After fashion, so that `make -j` does not run both at once.
digits: fashion
	$(digits) --resume_training auto
	$(digits_sample) --fid --num_samples 64 -i samples
	$(digits_sample) --sequence -i sequence
	$(digits_sample) --interpolation -i interpolation

# A process a core, one thread each: threads of two networks at once would wait for one another.
test: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=15

# Inputs that lie, CASES of them, others each time. They take twenty minutes of a core.
CASES ?= 100000
fuzz: .venv/dev
	FUZZ_CASES=$(CASES) OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q tests/faults/test_fuzz.py

# Training and sampling under random signals, for MINUTES: the same to the bit as undisturbed, or it fails.
MINUTES ?= 60
soak: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.soak --minutes $(MINUTES)

lint: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

OUT ?= gpu

# The machine's own PyTorch serves; only what is missing beside it is installed.
gpu:
	test -d .venv-gpu || $(PYTHON) -m venv --system-site-packages .venv-gpu
	if test -d wheels; \
	then .venv-gpu/bin/python -m pip install --quiet --no-index --no-deps --find-links wheels -r wheels/names.txt; \
	else .venv-gpu/bin/python -m pip install --quiet -r requirements-dev.txt; fi
	.venv-gpu/bin/python -m benchmarks.gpu --out $(OUT)

# The Python of the machine that they are for.
FOR ?= $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])")

wheels: .venv/dev
	mkdir -p wheels
	.venv/bin/python -m pip freeze | grep -vE '^((torch|torchvision|triton|numpy|pillow|scipy)==|nvidia-|cuda-)' > wheels/names.txt
	.venv/bin/python -m pip download --quiet --no-deps --only-binary :all: --python-version $(FOR) -d wheels -r wheels/names.txt

.venv/runtime: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/runtime
	.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@
