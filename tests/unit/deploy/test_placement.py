"""Placement: the platform document and resources of the compiled IR, and the values of prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format

from spin_components.errors import ConfigError
from spin_components.prepare.pods import pod_requests
from spin_components.settings.settings import Settings
from spin_pipeline.config import load_settings
from spin_pipeline.dag import build
from spin_pipeline.deploy.cluster_settings import Configuration
from spin_pipeline.deploy.placement import CACHE
from spin_pipeline.deploy.pod_parameters import PODS, parts_of
from support.kfp_driver import ResolvedTask, resolve

GPU = [
    "placement.accelerator=nvidia.com/gpu",
    "generation.tensor_parallel=2",
    "hardware.ranks=4",
    "training.micro_batch_size=1",
]


def compiled(*overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Containers and pod configurations of a tiny pipeline for a cluster, by executor."""
    settings = load_settings("tiny", overrides)
    pipeline: Any = build(settings, settings.cluster)
    ir, platform = (json_format.MessageToDict(spec) for spec in (pipeline.pipeline_spec, pipeline.platform_spec))
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name: executor["container"] for name, executor in ir["deploymentSpec"]["executors"].items()}, pods


WITH_ALL_STEPS = ["evaluation.tasks=['arc_easy']", "warm_up.max_epochs=1", "control.sft=true"]


def resolved(settings: Configuration) -> list[ResolvedTask]:
    """The tasks of a run on a cluster, as KFP's driver resolves them after `prepare`."""
    pipeline: Any = build(settings, settings.cluster)
    ir, platform = (json_format.MessageToDict(spec) for spec in (pipeline.pipeline_spec, pipeline.platform_spec))
    table = pod_requests(settings.model_dump(mode="json", include=set(Settings.model_fields)))
    return list(resolve(ir, platform, {"prepare": {PODS: table}}))


def values(*overrides: str) -> dict[str, Any]:
    settings = load_settings("tiny", overrides).model_dump(mode="json", include=set(Settings.model_fields))
    return pod_requests(settings)


def test_gpus_follow_from_the_work_of_a_step() -> None:
    pod_fields = values(*GPU)
    assert pod_fields["gpu_type"] == "nvidia.com/gpu"
    counts = [pod_fields[f"{step}_gpus"] for step in ("generate", "train", "score", "validate", "evaluate")]
    assert counts == ["4", "4", "4", "4", "1"]


@pytest.mark.parametrize(("shards", "expected"), [(1, ("8", "8")), (2, ("4", "4")), (3, ("2", "2")), (16, ("2", "2"))])
def test_pods_of_shards_divide_the_gpus_of_a_training_pod(shards: int, expected: tuple[str, str]) -> None:
    generation = ["generation.tensor_parallel=2", f"generation.shards={shards}"]
    pod_fields = values(*GPU[:1], "hardware.ranks=8", "training.micro_batch_size=1", *generation)
    assert (pod_fields["generate_gpus"], pod_fields["score_gpus"]) == expected
    assert pod_fields["validate_gpus"] == "8"


def test_without_an_accelerator_no_gpu_is_requested() -> None:
    pod_fields = values("generation.tensor_parallel=2", "hardware.ranks=2")
    assert [
        pod_fields["gpu_type"],
        *(pod_fields[f"{step}_gpus"] for step in ("generate", "train", "score")),
    ] == [
        "",
        "0",
        "0",
        "0",
    ]


def test_every_pod_requests_what_prepare_returned_for_its_step() -> None:
    placed = [
        'placement.node_selector={zone = "a"}',
        'placement.tolerations=[{key = "gpu", operator = "Exists"}]',
        "placement.affinity={requiredDuringSchedulingIgnoredDuringExecution = {}}",
        'placement.generate={cpu = "2", memory = "20Gi"}',
        'placement.train={cpu = "3", memory = "30Gi"}',
        'placement.score={cpu = "500m", memory = "5Gi"}',
    ]
    where = [
        {"zone": "a"},
        [{"key": "gpu", "operator": "Exists"}],
        {"requiredDuringSchedulingIgnoredDuringExecution": {}},
    ]
    settings = load_settings("tiny", [*GPU, *placed, *WITH_ALL_STEPS, "generation.shards=2"])
    # 4 GPUs, which 2 shards divide: tensor_parallel is 2; an evaluation has one process
    expected = {
        "generate": ["2", "20Gi", "nvidia.com/gpu", "2"],
        "ref-logprob": ["500m", "5Gi", "nvidia.com/gpu", "2"],
        "train-epoch": ["3", "30Gi", "nvidia.com/gpu", "4"],
        "warm-up": ["3", "30Gi", "nvidia.com/gpu", "4"],
        "control": ["3", "30Gi", "nvidia.com/gpu", "4"],
        "validate": ["500m", "5Gi", "nvidia.com/gpu", "4"],
        "evaluate": ["500m", "5Gi", "nvidia.com/gpu", "1"],
    }
    found: dict[str, list[str]] = {}
    for task in resolved(settings):
        step = parts_of(task.key)[0]
        if step in ("prepare", "checkpoint", "result"):
            assert (task.resources, task.placement) == (["2", "8Gi", "", ""], [])
            continue
        assert task.placement == where, task.key
        assert found.setdefault(step, task.resources) == task.resources, task.key
    assert found == expected


def test_fused_steps_request_what_the_first_of_them_does() -> None:
    settings = load_settings("tiny", [*GPU, "cluster.fuse=['ref-logprob', 'validate']"])
    resources = {parts_of(task.key)[0]: task.resources for task in resolved(settings)}
    table = pod_requests(settings.model_dump(mode="json", include=set(Settings.model_fields)))
    for step, kind in (("generate-and-score", "generate"), ("train-and-validate", "train")):
        assert resources[step] == [table[f"{kind}_cpu"], table[f"{kind}_memory"], "nvidia.com/gpu", "4"]


def test_a_resource_is_the_whole_text_of_an_input() -> None:
    containers, pods = compiled()
    for name in ("exec-generate", "exec-ref-logprob", "exec-train-epoch", "exec-validate"):
        resources = containers[name]["resources"]
        requested = [
            resources["resourceCpuLimit"],
            resources["resourceMemoryLimit"],
            *resources["accelerator"].values(),
        ]
        # KFP takes names with this prefix alone for parameters
        assert all(value.startswith("{{$.inputs.parameters['pipelinechannel--") for value in requested), name
        assert {"nodeSelector", "tolerations", "nodeAffinity"} <= set(pods[name])


def test_the_images_keep_the_cache_where_its_volume_is_mounted() -> None:
    files = sorted((Path(__file__).parents[3] / "docker").glob("*.Dockerfile"))
    assert len(files) == 3
    for file in files:
        assert f"SPIN_CACHE_DIR={CACHE} " in file.read_text("utf-8"), file.name


def test_each_step_has_its_image() -> None:
    containers, _ = compiled("cluster.image_prefix=registry.local/team/", "cluster.image_tag=7")
    images = {name: container["image"] for name, container in containers.items()}
    assert images == {
        "exec-prepare": "registry.local/team/cpu:7",
        "exec-checkpoint": "registry.local/team/cpu:7",
        "exec-result": "registry.local/team/cpu:7",
        "exec-generate": "registry.local/team/generate:7",
        "exec-ref-logprob": "registry.local/team/train:7",
        "exec-train-epoch": "registry.local/team/train:7",
        "exec-validate": "registry.local/team/train:7",
    }


def test_storage_keys_come_from_a_secret_only() -> None:
    containers, pods = compiled("cluster.storage_secret=keys", 'cluster.storage_env={AWS_ACCESS_KEY_ID = "accesskey"}')
    for name, pod in pods.items():
        (secret,) = pod["secretAsEnv"]
        assert secret["secretName"] == "keys"
        assert secret["keyToEnv"] == [{"secretKey": "accesskey", "envVar": "AWS_ACCESS_KEY_ID"}], name
    assert not any("env" in container for container in containers.values())


def test_a_pods_own_identity_needs_no_secret() -> None:
    _, pods = compiled("cluster.storage_secret=")
    assert not any("secretAsEnv" in pod for pod in pods.values())


def test_pods_run_as_a_user_without_rights() -> None:
    _, pods = compiled()
    user = {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
    assert all(pod["securityContext"] == user for pod in pods.values())
    _, pods = compiled("cluster.run_as_user=0")
    assert not any("securityContext" in pod for pod in pods.values())


def test_configured_secrets_volumes_and_limits_are_in_every_pod() -> None:
    _, pods = compiled(
        "cluster.hub_secret=hub",
        "cluster.tracking_secret=trackers",
        "cluster.image_pull_secret=pull",
        "cluster.model_cache_claim=cache",
        "cluster.timeout_s=600",
        "cluster.shm_gib=16",
    )
    for pod in pods.values():
        assert [secret["secretName"] for secret in pod["secretAsEnv"]] == ["spin-storage", "hub", "trackers"]
        assert pod["secretAsEnv"][2]["optional"] is True
        assert pod["imagePullSecret"][0]["secretName"] == "pull"
        assert (pod["pvcMount"][0]["constant"], pod["pvcMount"][0]["mountPath"]) == ("cache", "/var/cache/spin")
        assert pod["activeDeadlineSeconds"] == "600"
    shared = {name for name, pod in pods.items() if "emptyDirMounts" in pod}
    assert shared == set(pods) - {"exec-prepare", "exec-checkpoint", "exec-result"}
    assert pods["exec-generate"]["emptyDirMounts"][0]["sizeLimit"] == "16Gi"


def test_evaluations_are_placed_like_scoring_and_only_they_have_the_judges_key() -> None:
    judge = ("evaluation.judge_url=http://judge/v1", "evaluation.judge_model=j", "cluster.judge_secret=judge")
    containers, pods = compiled(*judge, "spin.max_iterations=3")
    evaluating = {name for name in containers if name.startswith("exec-evaluate")}
    given = {name for name, pod in pods.items() if "judge" in [secret["secretName"] for secret in pod["secretAsEnv"]]}
    assert given == evaluating != set()
    for name in evaluating:
        for field in ("image", "resources"):
            assert containers[name][field] == containers["exec-validate"][field], name
        (secret,) = [secret for secret in pods[name]["secretAsEnv"] if secret["secretName"] == "judge"]
        assert secret["keyToEnv"] == [{"secretKey": "SPIN_JUDGE_API_KEY", "envVar": "SPIN_JUDGE_API_KEY"}]


def test_steps_that_resume_are_retried_and_prepare_is_not() -> None:
    settings = load_settings("tiny", ["cluster.retries=5"])
    pipeline: Any = build(settings, settings.cluster)
    ir = json_format.MessageToDict(pipeline.pipeline_spec)
    graphs = [ir["root"], *(component for component in ir["components"].values() if "dag" in component)]
    tasks = [task for graph in graphs for task in graph["dag"]["tasks"].values()]
    retried = {task["componentRef"]["name"]: task.get("retryPolicy", {}).get("maxRetryCount") for task in tasks}
    steps = ("generate", "ref-logprob", "train-epoch", "validate", "checkpoint")
    assert [retried[f"comp-{step}"] for step in steps] == [5] * 5
    assert retried["comp-prepare"] is None


def test_a_run_on_this_machine_has_no_placement() -> None:
    pipeline: Any = build(load_settings("tiny"))
    assert not json_format.MessageToDict(pipeline.platform_spec)
    assert "retryPolicy" not in str(json_format.MessageToDict(pipeline.pipeline_spec))


def test_executors_are_shared_by_all_iterations() -> None:
    containers, _ = compiled("spin.max_iterations=8")
    assert len(containers) == len(compiled()[0]) == 7  # those of 6 steps, and result


def test_pods_have_labels_with_their_step_and_run_and_the_queue() -> None:
    _, pods = compiled("run.name=mine", "cluster.queue=gpus")
    assert pods["exec-train-epoch"]["podMetadata"]["labels"] == {
        "app.kubernetes.io/part-of": "spin-pipelines",
        "app.kubernetes.io/component": "train-epoch",
        "app.kubernetes.io/instance": "mine",
        "kueue.x-k8s.io/queue-name": "gpus",
    }
    assert "kueue.x-k8s.io/queue-name" not in str(compiled()[1])


def test_pods_have_labels_with_iteration_and_epoch_where_asked_for() -> None:
    _, pods = compiled("cluster.iteration_labels=true")
    labels = pods["exec-train-epoch-1-0"]["podMetadata"]["labels"]
    assert (labels["spin-pipelines.io/iteration"], labels["spin-pipelines.io/epoch"]) == ("1", "0")
    assert not {name for name in pods["exec-prepare"]["podMetadata"]["labels"] if name.startswith("spin-pipelines.io")}


def test_fused_steps_have_the_image_and_the_pod_of_the_first() -> None:
    fused, alone = (compiled(*GPU, f"cluster.fuse={steps}")[0] for steps in (["ref-logprob", "validate"], []))
    for both, first in (("generate-and-score", "generate"), ("train-and-validate", "train-epoch")):
        ours, theirs = fused[f"exec-{both}"], alone[f"exec-{first}"]
        assert (ours["image"], ours["resources"]) == (theirs["image"], theirs["resources"])
    assert not {name for name in fused if "ref-logprob" in name or "train-epoch" in name}
    assert sum(name.startswith("exec-validate") for name in fused) == 1  # the base model's has no step before it


def test_a_step_that_starts_other_pods_is_fused_with_none() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.fuse has validate, and hardware\.nodes = 2.*leave validate out"):
        load_settings("tiny", ["cluster.fuse=['validate']", "hardware.nodes=2", "hardware.ranks=1"])


def test_a_mistake_in_the_cluster_section_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.storage_secrt: unknown key; did you mean 'storage_secret'\?"):
        load_settings("tiny", ["cluster.storage_secrt=x"])


def test_a_pipeline_for_a_cluster_is_yaml_of_two_documents(tmp_path: Any) -> None:
    from spin_pipeline.cli import main

    output = tmp_path / "spin.yaml"
    assert main(["compile", "--config", "tiny", "-o", str(output)]) == 0
    pipeline, platform = yaml.safe_load_all(output.read_text("utf-8"))
    assert pipeline["schemaVersion"] == "2.1.0"
    assert set(platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]) == set(
        pipeline["deploymentSpec"]["executors"]
    )


def test_every_parameter_of_a_task_is_an_input_of_its_graph() -> None:
    # KFP's compiler forgets those of resources within a loop, and a cluster would fail there
    settings = load_settings("tiny", ["spin.max_iterations=3"])
    pipeline: Any = build(settings, settings.cluster)
    ir = json_format.MessageToDict(pipeline.pipeline_spec)
    graphs = {
        "root": ir["root"],
        **{name: component for name, component in ir["components"].items() if "dag" in component},
    }
    for name, graph in graphs.items():
        given = set(graph.get("inputDefinitions", {}).get("parameters", {}))
        for task in graph["dag"]["tasks"].values():
            read = {entry.get("componentInputParameter") for entry in task["inputs"]["parameters"].values()} - {None}
            assert read <= given, name
