{{- define "nixops-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "nixops-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "nixops-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "nixops-operator.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "nixops-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "nixops-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "nixops-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "nixops-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "nixops-operator.labels" -}}
{{ include "nixops-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "nixops-operator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "nixops-operator.config" -}}
{{- $lease := dict "namespace" .Release.Namespace "name" "nixops-operator" }}
{{- $ours := dict "lease" $lease "server" (dict "port" 8080) "watch" (dict "namespaces" list) }}
{{- $nix := dict "scratch" (dict "maxSize" .Values.scratch.sizeLimit) }}
{{- if not .Values.store.existingClaim }}
{{- $_ := set $nix "store" (dict "maxSize" .Values.store.sizeLimit) }}
{{- end }}
{{- $_ := set $ours "nix" $nix }}
{{- mergeOverwrite $ours (deepCopy .Values.config) | toYaml }}
{{- end }}

{{- define "nixops-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "nixops-operator.serviceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end }}
