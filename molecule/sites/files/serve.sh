#!/bin/sh
# serve.sh ADDRESS: what a site has, at this address of this container: names, a proxy and a registry. The stand-in for the
# hub beside them listens where only the proxy reaches it.
set -eu
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -addext subjectAltName=DNS:registry.example.com \
  -keyout /site/registry-key.pem -out /site/registry-ca.pem 2>/dev/null
dnsmasq --conf-file=/dev/null --pid-file=/run/dnsmasq.pid --user=root --no-resolv --no-hosts --local=/example.com/ \
  --address=/proxy.example.com/"$1" --address=/registry.example.com/"$1"
python3 /hub.py 8080 HuggingFaceTB/SmolLM2-135M-Instruct=/model &
tinyproxy -d -c /files/tinyproxy.conf &
exec docker-registry serve /files/registry.json
