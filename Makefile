# Every target sets up what it needs: `make demo` or `make test` is all a fresh machine has to run.
PYTHON ?= python3
# Anything pip takes, for example: make test TORCH_SPEC="torch==2.11.0 torchvision==0.26.0"
TORCH_SPEC ?= torch==2.14.1 torchvision==0.29.1
# The folder of `make gpu-report`.
OUT ?= rbnorm-gpu

CSRC := src/rbnorm/kernels/cpu/csrc

VENV := .venv
BIN := $(VENV)/bin
# The stamps carry the choice of torch and Python: another choice makes the environment anew.
CHOICE := $(shell echo '$(PYTHON) $(TORCH_SPEC)' | cksum | cut -d' ' -f1)
TORCH := $(VENV)/.torch-$(CHOICE)
LAB := $(VENV)/.lab-$(CHOICE)
READY := $(VENV)/.ready-$(CHOICE)

TOOLS := $(VENV)-tools

# The C++ kernels, where there is a compiler; without one the portable path runs.
KERNELS := $(VENV)/.kernels

# The same kernels for `make sanitize`. Leaks are not looked for: Python and torch keep memory on
# purpose until the process ends. The libraries must be there before Python loads its first one.
SANITIZED := build/sanitize
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1
SANITIZERS = $(foreach name,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(name).so))

.PHONY: demo results test coverage test-gpu gpu-report sanitize check notebook docs bench env browser clean
.PHONY: test-floors compilers wheels sdist wheels-everywhere try-dist check-tag

# With what the demonstration itself needs, and no more.
demo: $(LAB) $(KERNELS)
	$(BIN)/rbnorm compare --out rbnorm-compare

# The pages and figures of the committed records, beside them, and what README and docs quote of
# them; runs nothing.
results: env
	$(BIN)/rbnorm compare --out results/compare-digits
	$(BIN)/rbnorm study domains --epochs 1 --no-run --out results/studies
	$(BIN)/python -m tools.results_table
	$(BIN)/python -m tools.results_page

SIDE_BY_SIDE = -m pytest -qq --numprocesses auto --dist loadgroup
PYTEST = $(BIN)/python $(SIDE_BY_SIDE)
test: env browser
	$(PYTEST)

# The same tests, in twice the time, and which lines and branches they take.
coverage: env browser
	$(PYTEST) --cov

test-gpu: env
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit( \
		'make test-gpu needs a CUDA or ROCm device that PyTorch can use, and found none')"
	$(BIN)/python -m pytest -m gpu tests/gpu

# Eight minutes on one GPU at most; needs no environment: any Python with torch and Triton will do.
gpu-report:
	PYTHONPATH=src $(PYTHON) -m tools.gpu_report --out $(OUT)

# The tests with other people's tools, some of them large, in an environment of their own that sees
# the packages of the other one.
test-tools: env
	$(BIN)/python -m venv $(TOOLS)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
		> "$$($(TOOLS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/rbnorm-env.pth"
	$(TOOLS)/bin/pip install --quiet --constraint constraints.txt --editable ".[tools]"
	$(TOOLS)/bin/python -m pytest -m tools tests/libraries

# The kernels' tests under ASan and UBSan, then a few cases under valgrind.
sanitize: env
	@command -v g++ >/dev/null && command -v valgrind >/dev/null || { \
		echo "make sanitize needs g++ and valgrind on the PATH: install them" >&2; exit 1; }
	CC=gcc CXX=g++ CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" \
	$(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	nm -D $(SANITIZED)/lib/rbnorm/kernels/cpu/_kernels.abi3.so | grep -q __asan_init
	PYTHONPATH=$(SANITIZED)/lib LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 \
	UBSAN_OPTIONS=print_stacktrace=1 RBNORM_FUZZ_EXAMPLES=1000 \
	$(BIN)/python -m pytest --capture=sys tests/test_fused.py tests/test_ops.py tests/test_fuzz_ops.py
	$(BIN)/python tests/memcheck.py

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(MAKE) docs

# The notebook for Colab and for the site, from its source, with what it prints and draws.
notebook: env
	PYTHONWARNINGS=ignore $(BIN)/jupytext --to ipynb --execute notebooks/rbn.py

# The site in both languages, and with it the page of `rbnorm explain` and the notebook; no network is
# needed.
docs: env
	$(BIN)/rbnorm explain --out docs/_build/explain
	$(BIN)/jupyter nbconvert --log-level ERROR --to html --output-dir docs/_build/notebook notebooks/rbn.ipynb \
		--HTMLExporter.require_js_url= --HTMLExporter.mathjax_url=_static/mathjax/tex-chtml.js
	sed -i '0,/<head>/s|<head>|<head><script>MathJax = {tex: {inlineMath: [["$$", "$$"]]}}</script>|' \
		docs/_build/notebook/rbn.html
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs -D language=zh_CN docs/zh docs/_build/html/zh

# The tests with the lowest versions of everything that the extras allow, but for those in Triton's
# interpreter: that of Triton 3.6 fails with the NumPy that is taken. Then the kernels' tests with the
# lowest torch that the library itself allows.
FLOORS := build/floors
test-floors:
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/pip install --quiet --upgrade pip "setuptools>=77" uv
	$(FLOORS)/bin/uv pip install --quiet --python $(FLOORS)/bin/python --resolution lowest-direct \
		"setuptools>=77" torch==2.11.0 torchvision==0.26.0 ".[lab,export]"
	$(FLOORS)/bin/pip uninstall --quiet --yes rbnorm
	$(FLOORS)/bin/python setup.py --quiet build_ext --inplace
	$(FLOORS)/bin/pip install --quiet hypothesis ipykernel jupytext mypy nbclient playwright pytest pytest-xdist
	PYTHONPATH=src $(FLOORS)/bin/python $(SIDE_BY_SIDE) tests/test_*.py tests/lab/test_records.py \
		--ignore tests/test_gpu_report.py --ignore tests/test_interpreted.py
	$(PYTHON) -m venv --clear $(FLOORS)-torch
	$(FLOORS)-torch/bin/pip install --quiet torch==2.4.1 "numpy<2" hypothesis pytest pytest-xdist
	PYTHONPATH=src $(FLOORS)-torch/bin/python $(SIDE_BY_SIDE) tests/test_fused.py tests/test_ops.py tests/test_fuzz_ops.py \
		tests/test_numerics.py tests/test_bad_input.py

# The kernels by other compilers than g++: as on macOS (clang, no OpenMP), for NEON, and, as far as no
# Python of Windows is needed, for Windows.
COMPILERS ?= clang++ aarch64-linux-gnu-g++
WINDOWS ?= x86_64-w64-mingw32-g++
COMPILE = -std=c++17 -O2 -Wall -Werror -Wno-psabi -fPIC -fvisibility=hidden \
	-DPy_LIMITED_API=0x030a0000 $(shell $(BIN)/python -c \
	'import sysconfig; print("-isystem", sysconfig.get_path("include"))')
compilers: env
	for compiler in $(COMPILERS); do for part in module plain; do echo "$$compiler $$part" && \
		$$compiler $(COMPILE) -c -o /dev/null $(CSRC)/$$part.cpp || exit 1; done; done
	$(WINDOWS) $(COMPILE) -c -o /dev/null $(CSRC)/plain.cpp

# In dist/: a wheel with kernels, for the oldest glibc that this compiler allows, and the source
# distribution; then both are tried where there is no compiler.
wheels: env
	rm -rf build/wheel dist
	$(BIN)/python setup.py --quiet clean --all
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	$(MAKE) sdist
	$(MAKE) try-dist TRY="--torch --beside $$($(BIN)/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')"

sdist: env
	$(BIN)/python -m build --sdist --outdir dist .

# The wheels that are published: by cibuildwheel, in the image of the oldest glibc that torch has.
wheels-everywhere: env
	$(BIN)/pip install --quiet cibuildwheel
	$(BIN)/cibuildwheel --output-dir dist

# make try-dist TRY="--python python3.10 --torch torch==2.4.1" takes another Python and torch; --lab in
# it tries the command line and the README, too.
TRY ?= --torch $(TORCH_SPEC)
try-dist: env
	$(BIN)/python tools/try_install.py dist/* $(TRY)

# A release's tag is its version, and the changelog has a chapter for it.
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' src/rbnorm/_version.py)
check-tag:
	test "$(TAG)" = "v$(VERSION)"
	grep -q "^## $(VERSION)" CHANGELOG.md

bench: env
	$(BIN)/rbnorm bench --out rbnorm-bench

env: $(READY) $(KERNELS)

$(TORCH): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools>=77"
	$(BIN)/pip install --quiet $(TORCH_SPEC)
	touch $@

$(LAB): EXTRAS := lab
$(READY): EXTRAS := lab,ray,export,dev
$(LAB) $(READY): $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

$(KERNELS): $(TORCH) setup.py $(wildcard $(CSRC)/*)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $(KERNELS)

# The tests open the report in a real browser.
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium; \
	else echo "make test needs Chromium or Chrome on the PATH: install one of them" >&2; exit 1; fi

clean:
	rm -rf $(VENV) $(TOOLS) build dist src/rbnorm/kernels/cpu/*.so docs/_build .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
