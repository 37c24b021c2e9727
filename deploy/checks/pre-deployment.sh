#!/usr/bin/env bash
# Is this daemon ready for production? Asks its operations port; needs curl and jq. Exits with 1 if anything is wrong.
# `betrace-kms validate --production` makes the same tests where the admin socket is, and needs neither.
#
#   deploy/checks/pre-deployment.sh [http://127.0.0.1:9464]
set -uo pipefail
OPS=${1:-${KMS_OPS:-http://127.0.0.1:9464}}
failed=0

for tool in curl jq; do
  command -v "$tool" >/dev/null || {
    echo "FAIL  there is no $tool here: install it, or run betrace-kms validate --production, which needs none"
    exit 1
  }
done

check() { # name, expected, found
  if [ "$2" = "$3" ]; then echo "PASS  $1: $3"; else echo "FAIL  $1: $3 (expected $2)"; failed=1; fi
}

status=$(curl -sS --max-time 30 "$OPS/api/admin/kms/status") || {
  echo "FAIL  no daemon answers on $OPS: is it running, and is this its kms.ops.listen?"
  exit 1
}
provider=$(jq -er '.provider' <<<"$status" 2>/dev/null) || {
  echo "FAIL  $OPS does not say its status: call a loopback address of kms.ops.listen, by 127.0.0.1 or localhost"
  exit 1
}
ready=$(curl -sS --max-time 30 "$OPS/q/health/ready")
validation=$(curl -sS --max-time 60 -X POST "$OPS/api/admin/kms/validate?production=true")

if [ "$provider" = local ]; then check 'KMS provider' aws "$provider"; else echo "PASS  KMS provider: $provider"; fi
check 'health' UP "$(jq -r '.checks[] | select(.name == "kms").status' <<<"$ready")"
jq -r '.checks[] | select(.name == "kms") | .data | select(.error) | "      \(.error)\n      \(.help)"' <<<"$ready"
check 'gRPC service serves' true "$(jq -r '.serving' <<<"$status")"
check 'validation' PASS "$(jq -r '.overall' <<<"$validation")"
jq -r '.tests | to_entries[] | select(.value | startswith("FAIL")) | "      \(.key): \(.value)"' <<<"$validation"
jq -r '.recommendations[] | "      \(.)"' <<<"$validation"

curl -sS --max-time 30 "$OPS/q/metrics" | awk -F '[{}" ]+' '
  /^kms_cache_(hit|miss)_total/ { count[$1, $3] = $4 }
  END {
    for (n = split("encryption signing", kinds); n; n--) {
      hits = count["kms_cache_hit_total", kinds[n]]; all = hits + count["kms_cache_miss_total", kinds[n]]
      if (all) printf "INFO  cache hit rate of %s keys: %.1f%%\n", kinds[n], 100 * hits / all
      else printf "INFO  cache hit rate of %s keys: none was asked for yet\n", kinds[n]
    }
  }'
exit "$failed"
