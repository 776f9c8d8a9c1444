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
{{- /* A folder that the process makes for itself: the volume is its group's too. */}}
{{- $folder := dict "FEDLOOM_DATA_FOLDER" "/var/lib/fedloom/data" }}
{{- range $name, $value := merge (dict) .Values.settings .Values.environment $folder }}
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
