#!/usr/bin/env bash
# Writes the Kubernetes manifest of the alert rules from deploy/prometheus/rules.yaml, of which it is a copy.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  printf '# Made by scripts/kubernetes_rules.sh (make kubernetes-rules) from deploy/prometheus/rules.yaml: change that file.\n'
  printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: ddl-server\n'
  printf '  labels:\n    app.kubernetes.io/name: ddl-server\nspec:\n'
  sed -e '/^groups:/,$!d' -e 's/^\(.\)/  \1/' deploy/prometheus/rules.yaml
} >deploy/kubernetes/components/monitoring/prometheusrule.yaml
