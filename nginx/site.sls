# Guarantees that nginx serves this site, in one file of its own, with what is on disk now; the file goes live once nginx
# has accepted it together with everything else that it reads.
{% set nginx = salt['formula.config']('nginx') %}
{% set pki = nginx.tls.source == 'pki' %}
{% set certificate = '/etc/pki/web/server-cert.pem' if pki else nginx.tls.certificate %}
{% set key = '/etc/pki/web/server-key.pem' if pki else nginx.tls.key %}

include:
  - nginx.packages
  - nginx.certificate

nginx_site:
  nginx_site.served:
    - name: /etc/nginx/conf.d/hypervisor.conf
    - settings:
{% for name in ['server_names', 'ports', 'ipv6', 'networks', 'hsts_seconds', 'hash', 'api', 'inventory', 'consoles', 'console'] %}
        {{ name }}: {{ nginx[name] | json }}
{% endfor %}
    - certificate: {{ certificate }}
    - key: {{ key }}
    - pki: /etc/pki/web
    - web: /usr/share/hypervisor-formula/web
    - service: {{ nginx.service }}
    - sandbox: {{ '/etc/systemd/system/' ~ nginx.service ~ '.service.d/hypervisor.conf' }}
    - require:
      - pkg: nginx_packages
{% if pki or nginx.consoles %}
    - watch:
{% if pki %}
      - host_certificate: nginx_certificate_web
{% endif %}
{% if nginx.consoles %}
      - host_certificate: nginx_certificate_console
{% endif %}
{% endif %}
