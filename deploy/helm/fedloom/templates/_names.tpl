{{- define "fedloom.name" -}}
{{- printf "%s-fedloom" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "fedloom.image" -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{- define "fedloom.selector" -}}
app.kubernetes.io/name: fedloom
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fedloom.labels" -}}
{{ include "fedloom.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "fedloom.environment" -}}
{{- range $name, $value := merge (dict) .Values.settings .Values.environment }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "fedloom.place" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
