# Everything runs in a virtual environment that the first target makes. On a machine without a GPU,
# PIP_EXTRA_INDEX_URL may name PyTorch's index of CPU builds, which saves several GB of CUDA libraries.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.tritonclip-installed
DEMO_DIR ?= work/demo
GPU_VENV ?= .venv-gpu
GPU_MODEL ?= ViT-L-14
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-gpu lint format docs bench bench-memory baselines chaos soak families demo-checkpoint constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make the virtual environment and install tritonclip with everything it can use

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (one to several minutes, depending on the network)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[export,serve,bench,dev]'
	@touch $@

demo: $(STAMP) ## export the demo checkpoint with its LoRA, serve it, classify images, run a load test
	$(BIN)/tritonclip demo $(DEMO_DIR)

test: $(STAMP) ## run the tests, on the real server (40 to 60 minutes on two slow cores)
	$(BIN)/python -m pytest -m 'not slow'

test-all: $(STAMP) ## run every test, the slow ones too
	$(BIN)/python -m pytest

test-gpu: ## on a GPU machine, in one go: install into .venv-gpu, run the GPU tests, measure GPU_MODEL
	@nvidia-smi --list-gpus || { echo "error: make test-gpu needs an NVIDIA GPU and its driver; nvidia-smi lists none"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: make test-gpu needs Python 3.11 or 3.12: for 3.10 ONNX Runtime and PyTorch come for different CUDA; give PYTHON=python3.12")'
	$(MAKE) VENV=$(GPU_VENV) $(GPU_VENV)/.tritonclip-gpu
	@$(GPU_VENV)/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "error: PyTorch " + torch.__version__ + " sees no GPU: CUDA 13 needs driver 580 or later, and PIP_EXTRA_INDEX_URL must not name CPU builds")'
	status=0; $(GPU_VENV)/bin/python -m pytest -m gpu -W default || status=$$?; \
	  $(GPU_VENV)/bin/tritonclip bench gpu $(GPU_MODEL) --compile --serve || status=$$?; exit $$status

# ONNX Runtime's two builds are one Python package, so that of the CPU has to go.
$(VENV)/.tritonclip-gpu: $(STAMP)
	version=$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)') && \
	  $(BIN)/python -m pip uninstall --yes onnxruntime onnxruntime-gpu && \
	  $(PIP_INSTALL) "onnxruntime-gpu[cuda,cudnn]==$$version" || { rm -f $(STAMP); exit 1; }
	@touch $@

lint: $(STAMP) ## check style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## bring the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation as a site, into work/site
	$(BIN)/mkdocs build --strict

bench: $(STAMP) work/vit-b-32 ## measure again what benchmarks/results/ holds; wants a quiet machine
	$(BIN)/python benchmarks/preprocess_speed.py
	$(BIN)/python benchmarks/tokenizer_speed.py
	$(BIN)/python benchmarks/demo_accuracy.py
	$(BIN)/python benchmarks/precision_speed.py
	$(BIN)/python benchmarks/served_vs_inprocess.py --repository work/vit-b-32
	$(BIN)/python benchmarks/generator_capacity.py
	$(BIN)/python benchmarks/perf_analyzer.py --repository work/vit-b-32
	$(BIN)/python benchmarks/repeatability.py --repository work/vit-b-32

bench-memory: $(STAMP) ## measure again what an export takes; wants 20 GiB of memory and 30 of disk
	$(BIN)/python benchmarks/export_memory.py ViT-bigG-14
	$(BIN)/python benchmarks/export_memory.py ViT-H-14
	$(BIN)/python benchmarks/export_memory.py ViT-H-14 --loras 1
	$(BIN)/python benchmarks/export_memory.py ViT-L-14 --loras 2 --merge-method ties

baselines: $(STAMP) ## measure tritonclip against FastAPI, infinity and ONNX Runtime; wants a quiet machine
	$(BIN)/python benchmarks/baselines/run.py

CHAOS := $(BIN)/tritonclip chaos
chaos: $(STAMP) ## try the server with faults, overload and hostile input, write docs/reliability.md (more than 30 minutes on two slow cores)
	status=0; $(CHAOS) run --results benchmarks/results/chaos || status=$$?; $(CHAOS) report; exit $$status

soak: $(STAMP) ## twenty minutes of mixed traffic and kills, and its slopes in docs/reliability.md
	status=0; $(CHAOS) run soak --results benchmarks/results/chaos || status=$$?; $(CHAOS) report; exit $$status

families: $(STAMP) ## exercise every family and write docs/families.md from what came out
	mkdir -p work
	$(BIN)/pytest tests/families --family-results work/families.json
	$(BIN)/python -m tritonclip_export.registry.table work/families.json

work/vit-b-32: | $(STAMP)
	$(BIN)/tritonclip export ViT-B-32 $@ --random-weights 0

demo-checkpoint: $(STAMP) ## train the bundled demo checkpoint and its LoRA again
	$(BIN)/python export/demo/train.py

constraints: $(STAMP) ## resolve the pinned versions again
	$(PIP_INSTALL) --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --upgrade --quiet --no-header --no-annotate \
	  --no-emit-index-url --extra export --extra serve --extra bench --extra dev pyproject.toml -o constraints.txt
	sed -i "s/ ; python_full_version < '3.13' and sys_platform == 'linux'//; s/ and python_full_version < '3.13' and sys_platform == 'linux'//; s/ and sys_platform == 'linux'//" constraints.txt
	sed -i '1i # The versions that tritonclip was tested with, for Python 3.10 to 3.12. Made by `make constraints`.' constraints.txt

clean: ## remove the virtual environment and what the demo wrote
	rm -rf $(VENV) work
