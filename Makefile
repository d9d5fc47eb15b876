# For a fresh machine: `make book`, `make test`, and `make course` for lecturers. Each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests in several processes, one more than cores because some of them wait; each with files of its own, in their order.
APART = -n $(shell $(PYTHON) -c "import os; print(min(os.cpu_count(), 3) + 1)") --dist loadfile --no-loadscope-reorder
# Without a GPU the pair of torch and torchvision is pinned, so that pip never fetches CUDA builds of torch.
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)

# Hundreds of processes start: none compiles our sources again, whatever the environment says.
export PYTHONDONTWRITEBYTECODE =

.PHONY: book course test nightly lint machine setup browser demo weights clean

book: setup demo weights
	$(BIN)/python -m tools.book build

# Decks, labs, quizzes' answers, figures and notebooks for a class, in _build/course.
course: machine
	$(BIN)/python -m tools.course

# The text is checked while the CPU engine's kernels are compiled, if they have changed, and the first tests run. Tests
# and notebooks come from one queue, the notebooks first, so that nothing long comes last.
test: machine
	@$(MAKE) lint & checking=$$!; $(BIN)/python -m musc.engines.cpu && $(BIN)/python -m pytest $(APART) --durations 20 \
		--nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks tests; tested=$$?; \
	wait $$checking || { echo "lint failed: what it said stands above the tests"; exit 1; }; exit $$tested

# What takes too long for every change: tests that repeat a daily one on more, the notebooks with small parameters.
nightly: setup
	$(BIN)/python -m pytest -m nightly
	$(BIN)/python -m tools.notebooks smoke

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# At 192 px in place of 256 it takes half as long; its mean image AUROC is 91.6 % in place of 94.1 %.
demo: setup
	$(BIN)/musc evaluate synthetic --backbone procedural --image-size 192 --out results

# Networks that saw photographs, 88 MB each; pages that show them keep what was committed where none can be fetched.
weights: setup
	@$(BIN)/musc weights dinov2_vits14 focus_vits14 || echo "the book goes on without the weights that are missing"

# Python's packages and the browser come from different places, at the same time.
machine:
	@$(MAKE) --no-print-directory -j2 setup browser

# Bytecode on all cores, where pip would take one and half of its time. The CPU engine's kernels, which a first run would
# compile aside: with all cores at work that takes minutes, and plain torch computes meanwhile.
setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --no-compile $(CONSTRAINTS) -e '.[all]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null & $(BIN)/python -m musc.engines.cpu; wait
	@touch $@

# The tests of the built pages want a Chromium; where it cannot be installed they say so and are skipped.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq \
	     && apt-get install -qqy --no-install-recommends chromium >/dev/null; } \
	|| echo "no Chromium: the tests of the built pages will be skipped"

clean:
	rm -rf $(VENV) _build results .pytest_cache .mypy_cache .ruff_cache
