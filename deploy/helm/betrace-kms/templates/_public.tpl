{{- /*
What your chart includes, each with `.` of your chart:

  betrace-kms.sidecar             an item of initContainers
  betrace-kms.volumes             items of volumes
  betrace-kms.volumeMount         an item of volumeMounts, for a container that calls the daemon
  betrace-kms.env                 items of env, for such a container
  betrace-kms.supplementalGroup   an item of supplementalGroups in the pod's securityContext
  betrace-kms.podLabels           labels of the pod's template
  betrace-kms.podAnnotations      annotations of the pod's template
  betrace-kms.serviceAccountName  the account of serviceAccount
*/ -}}

{{- define "betrace-kms.sidecar" -}}{{ include "betrace-kms.own" (list "sidecar" .) }}{{- end -}}
{{- define "betrace-kms.volumes" -}}{{ include "betrace-kms.own" (list "volumes" .) }}{{- end -}}
{{- define "betrace-kms.volumeMount" -}}{{ include "betrace-kms.own" (list "volumeMount" .) }}{{- end -}}
{{- define "betrace-kms.env" -}}{{ include "betrace-kms.own" (list "env" .) }}{{- end -}}
{{- define "betrace-kms.supplementalGroup" -}}{{ include "betrace-kms.own" (list "supplementalGroup" .) }}{{- end -}}
{{- define "betrace-kms.podLabels" -}}{{ include "betrace-kms.own" (list "podLabels" .) }}{{- end -}}
{{- define "betrace-kms.podAnnotations" -}}{{ include "betrace-kms.own" (list "podAnnotations" .) }}{{- end -}}
{{- define "betrace-kms.serviceAccountName" -}}{{ include "betrace-kms.own" (list "serviceAccountName" .) }}{{- end -}}

{{- /* Includes betrace-kms.own.NAME in the scope of this chart, which is the caller's own or one below it. */ -}}
{{- define "betrace-kms.own" -}}
{{- $name := index . 0 -}}
{{- $caller := index . 1 -}}
{{- $scopes := list -}}
{{- range prepend (values ($caller.Subcharts | default dict)) $caller -}}
{{- if eq "betrace-kms" (index .Chart.Annotations "kms.betrace.dev/chart") -}}
{{- $scopes = append $scopes . -}}
{{- end -}}
{{- end -}}
{{- if ne 1 (len $scopes) -}}
{{- fail (printf "chart %s has %d dependencies on betrace-kms, so betrace-kms.%s must be given the one that is meant: (index .Subcharts \"NAME\") instead of ." $caller.Chart.Name (len $scopes) $name) -}}
{{- end -}}
{{- include (printf "betrace-kms.own.%s" $name) (first $scopes) -}}
{{- end -}}
