#!/usr/bin/env bash
# Is this daemon ready for production? Asks its operations port; needs curl and jq. Exits with 1 if anything is wrong.
#
#   deploy/checks/pre-deployment.sh [http://127.0.0.1:9464]
set -uo pipefail
OPS=${1:-${KMS_OPS:-http://127.0.0.1:9464}}
failed=0

check() { # name, expected, found
  if [ "$2" = "$3" ]; then echo "PASS  $1: $3"; else echo "FAIL  $1: $3 (expected $2)"; failed=1; fi
}

status=$(curl -sS --max-time 30 "$OPS/api/admin/kms/status") || {
  echo "FAIL  no daemon answers on $OPS: is it running, and is this its kms.ops.listen?"
  exit 1
}
ready=$(curl -sS --max-time 30 "$OPS/q/health/ready")
validation=$(curl -sS --max-time 60 -X POST "$OPS/api/admin/kms/validate?production=true")

check 'KMS provider' aws "$(jq -r '.provider' <<<"$status")"
check 'health' UP "$(jq -r '.checks[] | select(.name == "kms").status' <<<"$ready")"
jq -r '.checks[] | select(.name == "kms") | .data | select(.error) | "      \(.error)\n      \(.help)"' <<<"$ready"
check 'gRPC service serves' true "$(jq -r '.serving' <<<"$status")"
check 'validation' PASS "$(jq -r '.overall' <<<"$validation")"
jq -r '.tests | to_entries[] | select(.value | startswith("FAIL")) | "      \(.key): \(.value)"' <<<"$validation"
jq -r '.recommendations[] | "      \(.)"' <<<"$validation"

for key_type in signing encryption; do
  count() { curl -sS "$OPS/q/metrics" | grep "^kms_cache_$1_total{key_type=\"$key_type\"}" | awk '{print $2}'; }
  hits=$(count hit) misses=$(count miss)
  awk -v kind="$key_type" -v hits="${hits:-0}" -v misses="${misses:-0}" 'BEGIN {
    if (hits + misses) printf "INFO  cache hit rate of %s keys: %.1f%%\n", kind, 100 * hits / (hits + misses)
    else printf "INFO  cache hit rate of %s keys: none was asked for yet\n", kind }'
done
exit "$failed"
