{{- /* Names and labels of this chart's own objects. */ -}}

{{- define "betrace-kms.own.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Helm's usual rule. The longest suffix that is added is "-dashboard", and names of pods have 63 characters at most. */ -}}
{{- define "betrace-kms.own.fullname" -}}
{{- $name := include "betrace-kms.own.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "betrace-kms.own.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "betrace-kms.own.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "betrace-kms.own.secretName" -}}
{{- default (printf "%s-secret" (include "betrace-kms.own.fullname" .)) .Values.secret.existing -}}
{{- end -}}

{{- define "betrace-kms.own.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "betrace-kms.own.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Settings as text. Helm reads numbers as floats, whose own text is 1e+06 for a million: JSON's is 1000000. */ -}}
{{- define "betrace-kms.own.settings" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end }}
{{- end -}}
