# terraform -chdir=cluster/terraform apply: what cluster/aws.yaml expects in an account. Nothing here starts a machine.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.60, < 7"
    }
  }
}

variable "region" {
  type    = string
  default = "us-west-2"
}

variable "cluster_name" {
  description = "As in cluster/aws.yaml: rights are bound to machines with this tag."
  type        = string
  default     = "pointsweep"
}

variable "bucket" {
  description = "Name of the bucket for store, data and artifacts; bucket names are unique in the world."
  type        = string
}

variable "ssh_from" {
  description = "Addresses that may reach the machines by ssh, e.g. [\"203.0.113.7/32\"]: yours."
  type        = list(string)

  validation {
    condition     = alltrue([for range in var.ssh_from : !endswith(range, "/0")])
    error_message = "ssh_from must not name all addresses."
  }
}

variable "vpc_id" {
  description = "Network of the machines; the account's default where none is named."
  type        = string
  default     = null
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = var.cluster_name }
  }
}

data "aws_caller_identity" "current" {}

data "aws_vpc" "network" {
  id      = var.vpc_id
  default = var.vpc_id == null ? true : null
}

locals {
  facts = {
    account = data.aws_caller_identity.current.account_id
    region  = var.region
    cluster = var.cluster_name
    bucket  = var.bucket
  }
}

# Store, data and artifacts.

resource "aws_s3_bucket" "store" {
  bucket = var.bucket
}

resource "aws_s3_bucket_public_access_block" "store" {
  bucket                  = aws_s3_bucket.store.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "store" {
  bucket = aws_s3_bucket.store.id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "aws:kms"
    }
    bucket_key_enabled = true
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "store" {
  bucket = aws_s3_bucket.store.id

  rule {
    id     = "leftovers"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }

    noncurrent_version_expiration {
      noncurrent_days = 30
    }
  }
}

# Images.

resource "aws_ecr_repository" "pointsweep" {
  name                 = "pointsweep"
  image_tag_mutability = "IMMUTABLE"

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
  }
}

# The machines among themselves on all ports, ssh from ssh_from, and nobody else.

resource "aws_security_group" "nodes" {
  name        = "${var.cluster_name}-nodes"
  description = "Ray nodes of ${var.cluster_name}"
  vpc_id      = data.aws_vpc.network.id
}

resource "aws_vpc_security_group_ingress_rule" "among_themselves" {
  description                  = "Ray nodes among themselves"
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each          = toset(var.ssh_from)
  description       = "ssh"
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 22
  to_port           = 22
}

resource "aws_vpc_security_group_egress_rule" "out" {
  description       = "S3, images, MLflow"
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

# Two kinds of machines: the head starts and ends workers; workers may use the bucket and pull images, and nothing else.

resource "aws_iam_role" "node" {
  for_each = toset(["head", "worker"])
  name     = "${var.cluster_name}-${each.key}"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ec2.amazonaws.com" }
    }]
  })
}

resource "aws_iam_instance_profile" "node" {
  for_each = aws_iam_role.node
  name     = each.value.name
  role     = each.value.name
}

resource "aws_iam_role_policy" "node" {
  for_each = aws_iam_role.node
  name     = "node"
  role     = each.value.id
  policy   = templatefile("${path.module}/policies/node.json", local.facts)
}

resource "aws_iam_role_policy" "head" {
  name   = "head"
  role   = aws_iam_role.node["head"].id
  policy = templatefile("${path.module}/policies/head.json", local.facts)
}

output "security_group" {
  description = "SecurityGroupIds in cluster/aws.yaml"
  value       = aws_security_group.nodes.id
}

output "repository" {
  description = "The images' name in cluster/aws.yaml, before the tag"
  value       = aws_ecr_repository.pointsweep.repository_url
}

output "store" {
  description = "POINTSWEEP_STORE in cluster/runtime_env.yaml"
  value       = "s3://${aws_s3_bucket.store.id}/pointsweep"
}
