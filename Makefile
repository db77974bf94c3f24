# Each target sets up .venv by itself; once it is there, that takes no time.
PYTHON ?= python3
SETUP := $(PYTHON) scripts/setup_env.py
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-trainers lint bench clean

help: ## show this list
	@echo "make TARGET [PYTHON=python3.13]"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## make or update .venv, with what the tests need
	@$(SETUP) --extra dev --extra torch

demo: ## how long a small real network stays in its minima, by batch size
	@$(SETUP) -- $(BIN)/batchwell study breast-cancer-network

lint: ## style, format and types
	@$(SETUP) --extra dev --extra torch
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary

test: lint ## lint, then every test but the slow ones
	@$(PYTEST)

test-slow: ## the slow tests only
	@$(SETUP) --extra dev --extra torch
	@$(PYTEST) -m slow

test-trainers: ## the callbacks inside Lightning, Transformers and Accelerate
	@$(SETUP) --extra dev --extra torch --extra trainers
	@BATCHWELL_TRAINERS=1 $(PYTEST) tests/training/test_trainers.py

bench: ## compare with other libraries (fetches torch, several GB)
	@$(SETUP) --extra bench -- $(BIN)/python benchmarks/run.py

clean: ## remove .venv, caches and builds; keeps results
	@rm -rf .venv .venv.lock .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage build dist
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
