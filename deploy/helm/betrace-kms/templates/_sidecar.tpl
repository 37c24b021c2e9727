{{- /*
The sidecar, and what a pod needs for it. Each is in the scope of this chart; _public.tpl finds it.
The same as the kustomize component in deploy/kubernetes; a test compares both.
*/ -}}

{{- /* Where callers and probes find the daemon. */ -}}
{{- define "betrace-kms.own.address" -}}
{{- if .Values.callers.socket.enabled -}}
unix:/run/betrace-kms/own/{{ .Values.callers.socket.identity }}.sock
{{- else -}}
127.0.0.1:{{ .Values.callers.token.port }}
{{- end -}}
{{- end -}}

{{- /* The daemon makes the folders named own: others can write an emptyDir. */ -}}
{{- define "betrace-kms.own.listen" -}}
{{- $addresses := list -}}
{{- if .Values.callers.socket.enabled -}}
{{- $addresses = append $addresses (printf "unix:/run/betrace-kms/own/%s.sock;identity=%s;mode=0660;group=%d" .Values.callers.socket.identity .Values.callers.socket.identity (int64 .Values.callers.group)) -}}
{{- end -}}
{{- if .Values.callers.token.enabled -}}
{{- $addresses = append $addresses (printf "127.0.0.1:%d" (int64 .Values.callers.token.port)) -}}
{{- end -}}
{{- join "," $addresses -}}
{{- end -}}

{{- define "betrace-kms.own.probe" -}}
exec:
  command:
    - grpc_health_probe
    - -addr={{ include "betrace-kms.own.address" .scope }}
    - -service={{ .service }}
    - -connect-timeout=2s
    - -rpc-timeout=2s
timeoutSeconds: 5
{{- end -}}

{{- /* All that Pod Security `restricted` asks of a container, so that it does not depend on the pod. */ -}}
{{- define "betrace-kms.own.restricted" -}}
runAsNonRoot: true
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "betrace-kms.own.sidecar" -}}
- name: betrace-kms
  image: {{ .Values.image | quote }}
  restartPolicy: Always # makes it a sidecar: it starts before the callers and stops after them
  env:
    - name: KMS_SERVER_LISTEN
      value: {{ include "betrace-kms.own.listen" . | quote }}
    - name: KMS_SERVER_REQUIRE_IDENTITY
      value: "true"
    {{- if .Values.callers.token.enabled }}
    - name: KMS_SERVER_TOKEN_FILE
      value: /run/betrace-kms/own/token
    - name: KMS_SERVER_TOKEN_GROUP
      value: {{ int64 .Values.callers.group | quote }}
    {{- end }}
    - name: KMS_DATA_DIR
      value: /var/lib/betrace-kms{{ if not .Values.data.claim }}/own{{ end }}
    - name: KMS_CONFIG_DIR
      value: /etc/betrace-kms/secret:/etc/betrace-kms/config
    {{- if .Values.metrics.enabled }}
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: KMS_OPS_LISTEN
      value: {{ printf "127.0.0.1:%[1]d,[$(POD_IP)]:%[1]d" (int64 .Values.metrics.port) | quote }}
    {{- end }}
    {{- with .Values.aws.roleArn }}
    - name: AWS_ROLE_ARN
      value: {{ . }}
    - name: AWS_WEB_IDENTITY_TOKEN_FILE
      value: /var/run/secrets/betrace-kms-aws/token
    {{- end }}
    {{- if .Values.vault.token }}
    - name: VAULT_AUTH_TOKEN_FILE
      value: /var/run/secrets/betrace-kms-vault/token
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if .Values.metrics.enabled }}
  ports:
    - name: kms-metrics
      containerPort: {{ int64 .Values.metrics.port }}
  {{- end }}
  # Start and liveness ask for the process (""), which never touches KMS: an outage of KMS must not restart a daemon whose
  # cached keys still serve. The kubelet's own gRPC probe would dial the pod's address, where nobody listens.
  startupProbe:
    {{- include "betrace-kms.own.probe" (dict "scope" . "service" "") | nindent 4 }}
    periodSeconds: 2
    failureThreshold: 30
  livenessProbe:
    {{- include "betrace-kms.own.probe" (dict "scope" . "service" "") | nindent 4 }}
    periodSeconds: 30
    failureThreshold: 3
  # Ready from the first time that the master key was usable until the drain.
  readinessProbe:
    {{- include "betrace-kms.own.probe" (dict "scope" . "service" "betrace.kms.v1.KeyManagementService") | nindent 4 }}
    periodSeconds: 10
  securityContext:
    runAsUser: 10001
    runAsGroup: 10001
    {{- include "betrace-kms.own.restricted" . | nindent 4 }}
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: betrace-kms-data
      mountPath: /var/lib/betrace-kms
    - name: betrace-kms-config
      mountPath: /etc/betrace-kms/config
      readOnly: true
    - name: betrace-kms-secret
      mountPath: /etc/betrace-kms/secret
      readOnly: true
    - name: betrace-kms-callers
      mountPath: /run/betrace-kms
    # Kubernetes mounts its API token where nothing is mounted yet. This container has no use for it.
    - name: betrace-kms-no-token
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
    {{- if .Values.aws.roleArn }}
    - name: betrace-kms-aws
      mountPath: /var/run/secrets/betrace-kms-aws
      readOnly: true
    {{- end }}
    {{- if .Values.vault.token }}
    - name: betrace-kms-vault
      mountPath: /var/run/secrets/betrace-kms-vault
      readOnly: true
    {{- end }}
    {{- with .Values.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "betrace-kms.own.volumes" -}}
- name: betrace-kms-callers
  emptyDir:
    sizeLimit: 1Mi
- name: betrace-kms-data
  {{- if .Values.data.claim }}
  persistentVolumeClaim:
    claimName: {{ .Values.data.claim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.data.sizeLimit }}
  {{- end }}
- name: betrace-kms-config
  configMap:
    name: {{ include "betrace-kms.own.fullname" . }}-config
- name: betrace-kms-secret
  secret:
    secretName: {{ include "betrace-kms.own.secretName" . }}
    optional: true
- name: betrace-kms-no-token
  emptyDir:
    sizeLimit: 1Mi
{{- if .Values.aws.roleArn }}
- name: betrace-kms-aws
  projected:
    sources:
      - serviceAccountToken:
          audience: sts.amazonaws.com
          expirationSeconds: 86400
          path: token
{{- end }}
{{- if .Values.vault.token }}
- name: betrace-kms-vault
  projected:
    sources:
      - serviceAccountToken:
          audience: vault
          expirationSeconds: 3600
          path: token
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "betrace-kms.own.volumeMount" -}}
- name: betrace-kms-callers
  mountPath: /run/betrace-kms
  readOnly: true
{{- end -}}

{{- define "betrace-kms.own.env" -}}
- name: BETRACE_KMS_ADDR
  value: {{ include "betrace-kms.own.address" . | quote }}
{{- if .Values.callers.token.enabled }}
- name: KMS_TOKEN_FILE
  value: /run/betrace-kms/own/token
{{- end }}
{{- end -}}

{{- define "betrace-kms.own.podLabels" -}}
{{- toYaml .Values.podLabels -}}
{{- end -}}

{{- /* Settings are read at start: a pod with other settings is another pod. */ -}}
{{- define "betrace-kms.own.podAnnotations" -}}
kms.betrace.dev/settings: {{ list .Values.config .Values.secret.data | toJson | sha256sum }}
{{- end -}}

{{- define "betrace-kms.own.supplementalGroup" -}}
- {{ int64 .Values.callers.group }}
{{- end -}}
