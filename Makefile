# make demo: digits from nothing to samples. make test: the whole suite. Both install into .venv first.
PYTHON ?= python3
EXP ?= demo

.PHONY: demo test
.DELETE_ON_ERROR:

main := .venv/bin/python main.py --config digits.yml --exp $(EXP) --doc digits
sample := $(main) --sample --timesteps 20

demo: .venv/installed
	$(main) --resume_training auto
	$(sample) --fid --num_samples 64 -i samples
	$(sample) --sequence -i sequence
	$(sample) --interpolation -i interpolation
	@echo "Look at the three contact sheets:"
	@echo "  $(EXP)/image_samples/samples.png        64 digits, DDIM in 20 steps"
	@echo "  $(EXP)/image_samples/sequence.png       the predicted digit along 8 chains"
	@echo "  $(EXP)/image_samples/interpolation.png  a path from one digit to another"

test: .venv/installed
	.venv/bin/python -m pytest -q --durations=15

.venv/installed: requirements.txt
	test -d .venv || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@
