{{- /* What values.schema.json cannot say, or not in words that help. */ -}}

{{- define "betrace-kms.own.validate" -}}
{{- $owned := dict
  "kms.server.listen" "set callers.* instead"
  "kms.server.require-identity" "leave it out, callers are always authenticated"
  "kms.server.token-file" "set callers.token.enabled instead"
  "kms.server.token-group" "set callers.group instead"
  "kms.data-dir" "set data.* instead"
  "kms.ops.listen" "set metrics.* instead"
-}}
{{- if .Values.vault.token -}}
{{- $owned = set $owned "vault.auth.token-file" "leave it out, or set vault.token=false" -}}
{{- end -}}
{{- range $place, $settings := dict "config" .Values.config "secret.data" .Values.secret.data -}}
{{- range $name, $value := $settings -}}
{{- if not (regexMatch "^[a-z][a-z0-9]*(\\.[a-z0-9]+(-[a-z0-9]+)*)+$" $name) -}}
{{- fail (printf "%s: %s is no setting: write names of docs/configuration.md, each whole and on a line of its own, such as kms.store: sqlite" $place $name) -}}
{{- end -}}
{{- with get $owned $name -}}
{{- fail (printf "%s: %s is set by the chart: %s" $place $name .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $variables := list "KMS_CONFIG_DIR" "KMS_CONFIG_FILE" -}}
{{- range $name, $instead := $owned -}}
{{- $variables = append $variables (regexReplaceAll "[^A-Za-z0-9]" $name "_" | upper) -}}
{{- end -}}
{{- range .Values.env -}}
{{- if has .name $variables -}}
{{- fail (printf "env: %s is set by the chart: remove it" .name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.secret.existing .Values.secret.data -}}
{{- fail "secret.existing and secret.data are both set: put all settings into one Secret" -}}
{{- end -}}
{{- if has (lower .Values.callers.socket.identity) (list "admin" "daemon") -}}
{{- fail (printf "callers.socket.identity: %s is the daemon's own: choose another name" .Values.callers.socket.identity) -}}
{{- end -}}
{{- if not (or .Values.callers.socket.enabled .Values.callers.token.enabled) -}}
{{- fail "no container could call the daemon: set callers.socket.enabled or callers.token.enabled" -}}
{{- end -}}
{{- if and .Values.metrics.podMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.podMonitor.enabled needs a port that Prometheus reaches: set metrics.enabled=true" -}}
{{- end -}}
{{- if and .Values.metrics.networkPolicy.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.networkPolicy.enabled needs a port to guard: set metrics.enabled=true" -}}
{{- end -}}
{{- if .Values.metrics.networkPolicy.enabled -}}
{{- if not .Values.metrics.networkPolicy.from -}}
{{- fail "metrics.networkPolicy.from is empty, which would let in everybody: name the peers that may scrape" -}}
{{- end -}}
{{- if not .Values.metrics.networkPolicy.otherPorts -}}
{{- fail "metrics.networkPolicy.otherPorts is empty: set allow to keep the pod's other ports open, or leave if policies of yours say who may reach them" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.example.enabled .Values.data.claim (gt (int64 .Values.example.replicas) 1) -}}
{{- fail "data.claim is for one daemon: set example.replicas=1, or kms.store=dynamodb without a claim" -}}
{{- end -}}
{{- end -}}
