{{- /* With a hash: an edited file is another ConfigMap, and so another spec that `--wait` waits for. */}}
{{- define "web.configuration" -}}
{{ .Release.Name }}-{{ .Files.Get "configuration.nix" | sha256sum | trunc 10 }}
{{- end }}
