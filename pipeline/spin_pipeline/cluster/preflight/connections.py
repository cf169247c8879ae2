"""Connections to the Kubernetes API and to that of Kubeflow Pipelines, made from flags, files and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kfp_server_api
import kubernetes.client
import yaml
from kubernetes import config

from spin_components.errors import ConfigError
from spin_pipeline.cluster.preflight.asking import Api
from spin_pipeline.cluster.target import Target, read_token

_RETRIES = 1  # a preflight says what does not answer; it does not wait for it


def connect_kubernetes(context: str = "", environment: Mapping[str, str] | None = None) -> Api:
    """The cluster of a kubeconfig file, or the one that this process is a pod of; nothing is contacted.

    Args:
        context: of the kubeconfig file; empty: the current one.
        environment: `os.environ` by default; `KUBECONFIG` names the file, `KUBERNETES_SERVICE_HOST` tells of a pod.

    Raises:
        ConfigError: neither can be used.
    """
    environment = os.environ if environment is None else environment
    files = environment.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    if any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        configuration = _from_files(files, context)
    elif environment.get("KUBERNETES_SERVICE_HOST"):
        configuration = _from_pod()
    else:
        raise ConfigError(f"no kubeconfig at {files}, and this is no pod; set KUBECONFIG to the cluster's file")
    configuration.retries = _RETRIES
    return Api(kubernetes.client.ApiClient(configuration), "BearerToken", kubernetes.client.ApiException)


def _from_files(files: str, context: str) -> Any:
    configuration = kubernetes.client.Configuration()
    try:
        config.load_kube_config(files, context or None, configuration, persist_config=False)
    except config.ConfigException as error:
        raise ConfigError(f"{files} cannot be used: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:  # it checks little
        raise ConfigError(
            f"{files} is no kubeconfig ({type(error).__name__}); set KUBECONFIG to the right one"
        ) from error
    return configuration


def _from_pod() -> Any:
    configuration = kubernetes.client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        raise ConfigError(
            f"this pod has no token for the Kubernetes API ({error}); give it a service account, or set KUBECONFIG"
        ) from error
    return configuration


def connect_pipelines(target: Target) -> Api:
    """KFP's API; nothing is contacted.

    Raises:
        ConfigError: the token's file cannot be read any more.
    """
    configuration = kfp_server_api.Configuration(host=target.endpoint)
    configuration.retries = _RETRIES
    if target.ca_cert:
        configuration.ssl_ca_cert = target.ca_cert
    if token := read_token(target.token_file) if target.token_file else target.token:
        configuration.api_key["authorization"] = token
        configuration.api_key_prefix["authorization"] = "Bearer"
    return Api(kfp_server_api.ApiClient(configuration), "Bearer", kfp_server_api.ApiException)
