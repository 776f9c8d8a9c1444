{{- define "fedloom.name" -}}
{{- printf "%s-fedloom" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "fedloom.image" -}}
{{- $digest := ternary "" (printf "@%s" .Values.image.digest) (empty .Values.image.digest) -}}
{{- printf "%s:%s%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) $digest -}}
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
{{- /* A folder that the process creates for itself, as the volume is also accessible to its group. */}}
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

{{- /* All addresses except those of metadata services, which hand out a machine's credentials. */}}
{{- define "fedloom.anywhere" -}}
- ipBlock: {cidr: 0.0.0.0/0, except: [169.254.169.254/32]}
- ipBlock: {cidr: "::/0", except: ["fd00:ec2::254/128", "fd20:ce::254/128"]}
{{- end -}}

{{- /* Egress to the port of a server: its pods in this namespace, its addresses, or any address. */}}
{{- define "fedloom.wayOut" -}}
- to:
    {{- if .podLabels }}
    - podSelector:
        matchLabels:
          {{- toYaml .podLabels | nindent 10 }}
    {{- else if .addresses }}
    {{- range .addresses }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
    {{- else }}
    {{- include "fedloom.anywhere" . | nindent 4 }}
    {{- end }}
  ports:
    - {protocol: TCP, port: {{ .port }}}
{{- end -}}

{{- /* Egress of every pod: DNS, the database, and rules of the operator. */}}
{{- define "fedloom.waysOutOfAll" -}}
- to:
    {{- toYaml .Values.networkPolicy.names.peers | nindent 4 }}
  ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{ include "fedloom.wayOut" .Values.networkPolicy.database }}
{{- with .Values.networkPolicy.moreEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
