"""cluster/aws.yaml and cluster/terraform: what Ray would start in an account, and what the machines may do there."""

from __future__ import annotations

import copy
import fnmatch
import json
import re
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as rays
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster" / "aws.yaml"
TERRAFORM = ROOT / "cluster" / "terraform"
PLACEHOLDER = "sg-0123456789abcdef0"


def configuration() -> dict:
    return prepare_config(yaml.safe_load(FILE.read_text()))


def kinds(config: dict) -> dict[str, dict]:
    return config["available_node_types"]


@pytest.fixture
def account(monkeypatch):
    """A simulated account with the security group of main.tf."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        for cached in (rays._client, rays._resource):
            getattr(cached, "cache_clear", lambda: None)()
        client = boto3.client("ec2", region_name="us-west-2")
        [network] = client.describe_vpcs()["Vpcs"]
        made = client.create_security_group(GroupName="pointsweep-nodes", Description="nodes", VpcId=network["VpcId"])
        itself = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": made["GroupId"]}]}]
        client.authorize_security_group_ingress(GroupId=made["GroupId"], IpPermissions=itself)
        yield client, made["GroupId"]


def prepared(config: dict) -> dict:
    """What Ray makes of a configuration: networks, security groups and machine images."""
    for step in (rays._configure_subnet, rays._configure_security_group):
        config = step(config)
    rays._check_ami(config)
    return config


def open_to_all(client) -> list[str]:
    """The groups with a rule that lets all addresses in."""
    groups = client.describe_security_groups()["SecurityGroups"]
    return [
        group["GroupName"]
        for group in groups
        for rule in group["IpPermissions"]
        for addresses in rule.get("IpRanges", [])
        if addresses["CidrIp"].endswith("/0")
    ]


def test_ray_accepts_the_configuration():
    config = configuration()
    validate_config(config)
    for kind in ("gpu_spot", "cpu_spot"):
        market = kinds(config)[kind]["node_config"]["InstanceMarketOptions"]
        assert market == {"MarketType": "spot"}
    with pytest.raises(Exception, match="max_workerz"):
        validate_config(copy.deepcopy(config) | {"max_workerz": 1})


def test_ray_starts_the_image_that_the_file_names_in_a_group_that_is_not_open(account):
    client, group = account
    config = yaml.safe_load(FILE.read_text().replace(PLACEHOLDER, group))
    made = prepared(prepare_config(config))
    for name, kind in kinds(made).items():
        node = kind["node_config"]
        assert node["ImageId"] not in rays.DEFAULT_AMI.values(), name
        assert node["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/"), name
        assert node["SecurityGroupIds"] == [group], name
    assert open_to_all(client) == []


def test_without_an_image_and_a_group_ray_would_take_an_old_one_and_open_port_22(account):
    """What the file guards against is still what Ray does: else its lines could go."""
    client, _ = account
    config = configuration()
    for kind in kinds(config).values():
        del kind["node_config"]["ImageId"], kind["node_config"]["SecurityGroupIds"]
    made = prepared(config)
    [image] = {kind["node_config"]["ImageId"] for kind in kinds(made).values()}
    assert image == rays.DEFAULT_AMI["us-west-2"] and "18.04" in rays.DEFAULT_AMI_NAME
    assert open_to_all(client) != []


def test_a_placeholder_that_was_forgotten_is_refused_before_a_machine_starts(account, capsys):
    client, _ = account
    with pytest.raises(AssertionError):
        prepared(configuration())
    assert "security group" in capsys.readouterr().err
    assert open_to_all(client) == []


def test_nodes_run_the_projects_image_and_install_nothing():
    config = configuration()
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)
    docker = config["docker"]
    assert docker["image"].endswith(f"/pointsweep:{version}-cuda")
    assert docker["head_image"].endswith(f"/pointsweep:{version}-cpu")
    assert kinds(config)["cpu_spot"]["docker"]["worker_image"] == docker["head_image"]
    commands = " ".join(str(line) for key in config if key.endswith("_commands") for line in config[key])
    assert not re.search(r"\bpip\b|\buv\b|apt|venv|conda", commands)
    text = (ROOT / "cluster" / "Dockerfile").read_text()
    # Ray copies files into the container by rsync, and the head reaches workers by ssh.
    assert "openssh-client rsync" in text


def test_head_and_workers_have_profiles_of_their_own():
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds(configuration()).items()}
    head = profiles.pop("head")
    assert head == "pointsweep-head" and set(profiles.values()) == {"pointsweep-worker"}
    for kind in kinds(configuration()).values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        for disk in kind["node_config"]["BlockDeviceMappings"]:
            assert disk["Ebs"]["Encrypted"] is True


def test_secrets_go_as_files_and_the_tracking_server_is_right_on_every_node():
    made = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())["env_vars"]
    assert not [name for name in made if re.search("PASSWORD|SECRET|TOKEN|KEY", name)]
    assert not re.search(r"127\.|localhost|0\.0\.0\.0|//\[::", made["MLFLOW_TRACKING_URI"])
    mounts = configuration()["file_mounts"]
    inside = {path for path in mounts if path.startswith("/home/ray/")}
    assert {"/home/ray/.ray/auth_token", "/home/ray/.mlflow/credentials"} <= inside


FACTS = {"account": "111122223333", "region": "us-west-2", "cluster": "pointsweep", "bucket": "b"}


def statements(name: str) -> list[dict]:
    text = (TERRAFORM / "policies" / f"{name}.json").read_text()
    for key, value in FACTS.items():
        text = text.replace(f"${{{key}}}", value)
    assert "${" not in text
    return json.loads(text)["Statement"]


ROLES = {"worker": statements("node"), "head": statements("node") + statements("head")}


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def may(role: str, action: str, resource: str, **facts: str) -> bool:
    """Whether a role's policies allow an action. `facts`: what the request says, by the last word of its key."""
    for statement in ROLES[role]:
        assert statement["Effect"] == "Allow"
        if not any(fnmatch.fnmatchcase(action, each) for each in listed(statement["Action"])):
            continue
        if not any(fnmatch.fnmatchcase(resource, each) for each in listed(statement["Resource"])):
            continue
        wanted = statement.get("Condition", {}).get("StringEquals", {})
        given = {key: facts.get(re.split("[:/]", key)[-2 if "/" in key else -1]) for key in wanted}
        if given == wanted:
            return True
    return False


EC2 = "arn:aws:ec2:us-west-2:111122223333"
INSTANCE = f"{EC2}:instance/i-1"
WORKER_ROLE = "arn:aws:iam::111122223333:role/pointsweep-worker"


def test_a_worker_uses_its_bucket_and_pulls_images_and_does_nothing_else():
    assert may("worker", "s3:PutObject", "arn:aws:s3:::b/pointsweep/x")
    assert may("worker", "s3:ListBucket", "arn:aws:s3:::b")
    assert may("worker", "ecr:BatchGetImage", "arn:aws:ecr:us-west-2:111122223333:repository/pointsweep")
    assert not may("worker", "s3:GetObject", "arn:aws:s3:::other/x")
    assert not may("worker", "s3:DeleteBucket", "arn:aws:s3:::b")
    for action in ("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags"):
        assert not may("worker", action, INSTANCE, RequestTag="pointsweep", ResourceTag="pointsweep")
    assert not may("worker", "iam:PassRole", WORKER_ROLE, PassedToService="ec2.amazonaws.com")
    services = {action.partition(":")[0] for each in ROLES["worker"] for action in listed(each["Action"])}
    assert services == {"s3", "ecr"}


def test_the_head_starts_and_ends_machines_of_its_cluster_only():
    assert may("head", "ec2:RunInstances", INSTANCE, RequestTag="pointsweep")
    assert not may("head", "ec2:RunInstances", INSTANCE)
    assert not may("head", "ec2:RunInstances", INSTANCE, RequestTag="other")
    for kind in ("subnet/s", "network-interface/n", "security-group/g", "volume/v", "key-pair/k"):
        assert may("head", "ec2:RunInstances", f"{EC2}:{kind}"), kind
    assert may("head", "ec2:TerminateInstances", INSTANCE, ResourceTag="pointsweep")
    assert not may("head", "ec2:TerminateInstances", INSTANCE)
    assert not may("head", "ec2:TerminateInstances", INSTANCE, ResourceTag="other")
    assert may("head", "ec2:CreateTags", INSTANCE, CreateAction="RunInstances", RequestTag="pointsweep")
    assert not may("head", "ec2:CreateTags", INSTANCE, RequestTag="pointsweep"), "no foreign machine"
    assert may("head", "ssm:GetParameters", "arn:aws:ssm:us-west-2::parameter/aws/service/deeplearning/x")


def test_the_head_gives_away_no_role_but_the_workers():
    passed = {"PassedToService": "ec2.amazonaws.com"}
    assert may("head", "iam:PassRole", WORKER_ROLE, **passed)
    assert not may("head", "iam:PassRole", WORKER_ROLE.replace("worker", "head"), **passed)
    assert not may("head", "iam:PassRole", "arn:aws:iam::111122223333:role/admin", **passed)
    assert not may("head", "iam:CreateRole", WORKER_ROLE)


@pytest.mark.parametrize("role", ROLES)
def test_no_policy_has_wildcard_actions_or_changes_whatever_there_is(role: str):
    for statement in ROLES[role]:
        actions = listed(statement["Action"])
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            reads = [action for action in actions if re.search(":(Describe|Get)", action)]
            assert reads == actions


def test_the_machines_tag_is_the_one_that_ray_writes():
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    text = (TERRAFORM / "policies" / "head.json").read_text()
    assert set(re.findall(r"aws:(?:Request|Resource)Tag/([\w-]+)", text)) == {TAG_RAY_CLUSTER_NAME}
    [default] = re.findall(r'variable "cluster_name".*?default\s+= "(.+?)"', (TERRAFORM / "main.tf").read_text(), re.S)
    assert default == configuration()["cluster_name"]


def test_terraform_makes_what_the_file_names():
    text = (TERRAFORM / "main.tf").read_text()
    for policy in (TERRAFORM / "policies").iterdir():
        assert f"policies/{policy.name}" in text
    kinds_of = set(re.findall(r'^resource "(\w+)"', text, re.M))
    assert {"aws_s3_bucket", "aws_iam_instance_profile", "aws_security_group", "aws_ecr_repository"} <= kinds_of
    incoming = re.findall(r'"aws_vpc_security_group_ingress_rule" "\w+" \{(.*?)^\}', text, re.S | re.M)
    assert len(incoming) == 2 and not any("0.0.0.0/0" in rule for rule in incoming)
    page = (ROOT / "docs" / "aws.md").read_text()
    needed = re.findall(r'variable "(\w+)" \{(.*?)^\}', text, re.S | re.M)
    for name, body in needed:
        assert "default " in body or f"-var {name}=" in page or f"-var '{name}=" in page, name


@pytest.mark.skipif(shutil.which("terraform") is None, reason="no terraform")
def test_terraform_reads_the_files(tmp_path):
    line = ["terraform", "fmt", "-check", "-diff", str(TERRAFORM)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
