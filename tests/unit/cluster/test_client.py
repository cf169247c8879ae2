"""The KFP client: targets, tokens, retries and error messages."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from spin_components.errors import ClusterAccessError, ClusterError, ConfigError
from spin_pipeline.cluster import client as client_module
from spin_pipeline.cluster import target as target_module
from spin_pipeline.cluster.client import Api, connect
from spin_pipeline.cluster.package import experiment_id, find_experiment
from spin_pipeline.cluster.target import Target, find_target
from spin_pipeline.commands.options import add_target
from support.kfp_server import KfpServer, Trouble, recorded

TOKEN = "a-token-that-must-not-leak"


def connected(**named: str | None) -> Api:
    """Connect as the commands do."""
    return connect(find_target(**named))


def test_a_flag_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_ENDPOINT", "http://one:8888/")
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", "http://two")
    assert find_target().endpoint == "http://one:8888"
    assert find_target("https://three/pipeline/#/runs").endpoint == "https://three/pipeline"
    monkeypatch.delenv("KFP_ENDPOINT")
    assert find_target().endpoint == "http://two"


def test_a_pod_finds_its_cluster_and_its_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KFP_TOKEN", "KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "namespace").write_text("team-a")
    monkeypatch.setattr(target_module, "_POD_TOKEN", tmp_path / "token")
    monkeypatch.setattr(target_module, "_POD_NAMESPACE", tmp_path / "namespace")
    target = find_target()
    assert target.endpoint == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
    assert (target.token_file, target.namespace) == (tmp_path / "token", "team-a")


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("", "no KFP endpoint"),
        ("localhost:8888", "expected http://host:port"),
        ("ftp://host", "expected http://host:port"),
        ("http://", "expected http://host:port"),
        ("http://user:secret@host", "holds a name or a password"),
    ],
)
def test_an_invalid_endpoint_is_refused(endpoint: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        find_target(endpoint)
    assert "secret" not in str(caught.value)


def test_a_token_file_without_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        find_target("http://host", str(tmp_path / "nowhere"))
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        find_target("http://host", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="are not a file"):
        find_target("http://host", ca_cert=str(tmp_path / "nowhere"))


def test_tokens_are_never_printed_and_not_accepted_as_arguments() -> None:
    assert TOKEN not in repr(Target("http://host", token=TOKEN))
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_target(parser)
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parser.parse_args(["--token", TOKEN])


def test_a_token_is_sent_and_a_wrong_one_is_a_one_line_error(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.tokens = {TOKEN}
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    connected()
    monkeypatch.setenv("KFP_TOKEN", "another-" + TOKEN)
    with pytest.raises(ClusterAccessError) as caught:
        connected()
    message = str(caught.value)
    assert "HTTP 401" in message
    assert "--token-file" in message
    assert "\n" not in message
    assert TOKEN not in message
    assert kfp.count("GET", "healthz") == 2, "a refusal is not retried"


def test_a_renewed_token_is_used_even_if_it_arrives_late(kfp: KfpServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    kfp.tokens = {"first"}
    api = connected(token_file=str(path))
    kfp.tokens = {"second"}
    path.write_text("second")
    assert find_experiment(api, "none") == ""
    kfp.tokens = {"second"}
    kfp.troubles = [
        Trouble("GET", "experiments", status=401, times=2)
    ]  # the server accepts the new token later than the file has it
    assert find_experiment(api, "none") == ""


def test_a_fixed_token_that_expires_fails_at_once(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    kfp.tokens = {TOKEN}
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    api = connected()
    kfp.tokens = {"other"}
    with pytest.raises(ClusterAccessError, match="has expired"):
        find_experiment(api, "none")


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("GET", "experiments", status=500, times=2),
        Trouble("GET", "experiments", status=503, body=b"\xff\xfe upstream connect error", content_type="text/plain"),
        Trouble("GET", "experiments", status=429),
        Trouble("GET", "experiments", times=5),  # dropped connections; the client library retries three times itself
        Trouble("GET", "experiments", delay_s=0.5),
    ],
)
def test_temporary_errors_are_retried(kfp: KfpServer, trouble: Trouble) -> None:
    api = connected()
    made = experiment_id(api, "spin")
    kfp.troubles = [trouble]
    assert find_experiment(api, "spin") == made
    assert trouble.times == 0


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("refused-compile", 'template name="comp-for-loop-2-iteration": template already exists Failed to compile job'),
        ("refused-bad-spec", "unknown template format: pipeline spec is invalid"),
        ("refused-no-pipeline", "Pipeline 00000000-0000-0000-0000-000000000000 not found"),
        ("refused-bad-parameters", "input parameter run_uri requires type string"),
    ],
)
def test_what_kfp_refuses_to_create_is_quoted_and_not_repeated(kfp: KfpServer, name: str, quoted: str) -> None:
    api, record = connected(), recorded(name)
    body = json.dumps(record["body"]).encode()
    kfp.troubles = [Trouble("POST", "/experiments", status=record["status"], body=body, times=9)]
    with pytest.raises(ClusterAccessError) as caught:
        experiment_id(api, "spin")
    assert quoted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kfp.count("POST", "experiments") == 1


def test_a_create_that_a_gateway_failed_is_repeated(kfp: KfpServer) -> None:
    kfp.troubles = [Trouble("POST", "/experiments", status=500, body=b"oops", content_type="text/plain", times=2)]
    assert experiment_id(connected(), "spin")


def test_a_request_that_times_out_is_retried(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_TIMEOUT_S", (5.0, 1.0))
    kfp.troubles = [Trouble("GET", "healthz", delay_s=600, times=2)]
    connected()


def test_a_permanent_failure_is_a_one_line_error(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIN_KFP_DEADLINE_S", "1")
    kfp.troubles = [Trouble("GET", "healthz", status=502, times=1000)]
    with pytest.raises(ClusterError, match=r"no valid response from http://127\.0\.0\.1:\d+ \(HTTP 502: trouble\)"):
        connected()
    kfp.close()
    with pytest.raises(ClusterError, match="Connection refused") as caught:
        connected()
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"<html>Sign in</html>", "text/html"), (b"[1, 2]", "application/json"), (b'{"multi_', "application/json")],
)
def test_a_server_that_is_not_kfp_is_refused(kfp: KfpServer, body: bytes, kind: str) -> None:
    kfp.troubles = [Trouble("GET", "healthz", status=200, times=1000, body=body, content_type=kind)]
    with pytest.raises(ClusterAccessError, match="is not the KFP API"):
        connected()


def test_a_refusal_quotes_kfps_message(kfp: KfpServer) -> None:
    body = json.dumps({"error": "x", "code": 7, "message": "User is not authorized:\n no verb list"}).encode()
    kfp.troubles = [Trouble("GET", "experiments", status=403, body=body)]
    with pytest.raises(ClusterAccessError, match=r"HTTP 403: User is not authorized: no verb list; this account"):
        find_experiment(connected(), "spin")


def test_a_wrong_path_is_a_one_line_error(kfp: KfpServer) -> None:
    with pytest.raises(ClusterAccessError, match="HTTP 404"):
        connected(endpoint=f"{kfp.endpoint}/elsewhere")


def test_requests_to_multi_user_kfp_name_the_namespace(kfp: KfpServer) -> None:
    kfp.multi_user = True
    with pytest.raises(ConfigError, match="--namespace"):
        connected()
    api = connected(namespace="team-a")
    assert experiment_id(api, "spin") == experiment_id(api, "spin")
    assert next(iter(kfp.stores["experiments"].values()))["namespace"] == "team-a"
    kfp.multi_user = False
    assert connected(namespace="team-a").namespace == "", "single-user KFP has no namespaces"


def test_lists_are_read_over_all_pages(kfp: KfpServer) -> None:
    api = connected()
    kfp.page_limit = 2
    ids = [experiment_id(api, f"number-{number}") for number in range(5)]
    listing = api.client.experiments.experiment_service_list_experiments
    assert [each.experiment_id for each in api.pages("listing", listing, "experiments")] == ids
