# Every target sets up what it needs in .venv; nothing but Python >= 3.10 and git is presumed.
PYTHON ?= python3
BIN := .venv/bin
DEMO := build/demo
# Test files that run side by side.
JOBS ?= 2

.PHONY: install demo results test test-gpu test-slow check lint types packaging clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	mkdir -p $(DEMO)
	$(BIN)/rnp-train --data digits -o $(DEMO)/checkpoint --sample-images $(DEMO)/images --overwrite
	$(BIN)/rnp-export $(DEMO)/checkpoint -o $(DEMO)/bundle --overwrite
	$(BIN)/rnp-inspect $(DEMO)/bundle --check
	$(BIN)/rnp-run $(DEMO)/bundle $(DEMO)/images/*.png
	$(BIN)/rnp-run $(DEMO)/bundle $(DEMO)/images/*.png --target-macs 0.3
	$(BIN)/rnp-build $(DEMO)/bundle -o $(DEMO)/engines --overwrite
	$(BIN)/rnp-bench $(DEMO)/engines --bundle $(DEMO)/bundle --data digits --batch 64 --duration-s 1
	$(BIN)/rnp-bench $(DEMO)/engines --bundle $(DEMO)/bundle --data digits --duration-s 1 --balance \
	    --batches 1,4,16,64 --html $(DEMO)/report.html

results: install
	$(BIN)/python benchmarks/digits_results.py -o docs/results

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# On a machine with a GPU. ONNX Runtime and TensorRT for it are installed by hand: docs/gpu-results.md.
test-gpu: install
	$(BIN)/python -m pytest -m gpu --timeout 1200

test-slow: install
	$(BIN)/python -m pytest -m slow -s --timeout 1200

check: lint types packaging

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.cpp' '*.hpp' '*.h')

# An installed copy, since the source tree has the sub-packages beside the package.
types: install
	rm -rf build/types build/lib
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build && MYPYPATH=types ../$(BIN)/mypy --config-file ../pyproject.toml -p rnp_deploy

packaging: install
	$(BIN)/python -m pytest -q tests/test_packaging.py

clean:
	rm -rf build .venv *.egg-info
