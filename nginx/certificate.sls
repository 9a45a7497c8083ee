# Guarantees a key and certificate of this host for the web, and one with which it opens consoles on hypervisors, each of
# a CA of its own, renewed before they end. nginx reads keys as root, so nobody else does.
{% set nginx = salt['formula.config']('nginx') %}
{% set tls = nginx.tls %}

nginx_certificate_folder:
  file.directory:
    - name: /etc/pki/web
    - user: root
    - group: root
    - mode: '0755'
    - makedirs: true

{% if tls.source == 'pki' %}
nginx_certificate_web:
  host_certificate.managed:
    - name: /etc/pki/web/server-cert.pem
    - purpose: web
    - key: /etc/pki/web/server-key.pem
    - ca: /etc/pki/web/ca-cert.pem
    - ca_source: {{ (tls.ca_folder ~ '/web.crt') | yaml_dquote }}
    - ca_server: {{ tls.ca_server | yaml_dquote }}
    - subject_names: {{ nginx.server_names | json }}
    - names_option: --web
    - days_remaining: {{ tls.days_remaining }}
    - key_type: {{ tls.key_type }}
    - wait_seconds: {{ tls.wait_seconds }}
    - require:
      - file: nginx_certificate_folder
{% endif %}

{% if nginx.consoles %}
nginx_certificate_console:
  host_certificate.managed:
    - name: /etc/pki/web/console-cert.pem
    - purpose: console
    - key: /etc/pki/web/console-key.pem
    - ca: /etc/pki/web/console-ca-cert.pem
    - ca_source: {{ (tls.ca_folder ~ '/console.crt') | yaml_dquote }}
    - ca_server: {{ tls.ca_server | yaml_dquote }}
    - days_remaining: {{ tls.days_remaining }}
    - key_type: {{ tls.key_type }}
    - wait_seconds: {{ tls.wait_seconds }}
    - require:
      - file: nginx_certificate_folder
{% endif %}
