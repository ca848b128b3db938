# `make help` lists the targets. Everything happens in .venv, which `make` fills by itself.
VENV ?= .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help

.PHONY: proto
proto: ## Regenerate tokenworks/v1 from protos/
	$(PY) -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. --grpc_python_out=. protos/tokenworks/v1/*.proto
