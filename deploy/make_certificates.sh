#!/bin/sh
# Make a certification authority of this installation's own, and certificates for Redis and for each of its users.
#
#   deploy/make_certificates.sh FOLDER [NAME ...]
#
# NAMEs are those under which clients reach Redis, besides redis, localhost and 127.0.0.1. Where there is an authority
# already (a hospital's, say), have it sign the same certificates, and do without this. Run again, it keeps the authority
# and renews the certificates. ca.key signs further ones: take it off this machine.
set -eu
umask 077
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [NAME ...]" >&2; exit 2; }
folder=$1
shift
mkdir -p "$folder"
cd "$folder"
names="DNS:redis,DNS:localhost,IP:127.0.0.1"
for name in "$@"; do names="$names,DNS:$name"; done
CA_DAYS=3650
CERTIFICATE_DAYS=397

if [ ! -e ca.key ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -sha256 -days "$CA_DAYS" -subj "/CN=osteopan certification authority" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" -out ca.crt
fi

certificate() {  # NAME USAGE [SUBJECT_ALTERNATIVE_NAMES]
    openssl ecparam -name prime256v1 -genkey -noout -out "$1.key.new"
    openssl req -new -key "$1.key.new" -subj "/CN=$1" -out "$1.csr"
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=$2"
        echo "subjectKeyIdentifier=hash"
        echo "authorityKeyIdentifier=keyid"
        [ -z "${3:-}" ] || echo "subjectAltName=$3"
    } > "$1.extensions"
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days "$CERTIFICATE_DAYS" \
        -extfile "$1.extensions" -out "$1.crt.new"
    mv "$1.key.new" "$1.key"
    mv "$1.crt.new" "$1.crt"
    rm "$1.csr" "$1.extensions"
}

certificate redis serverAuth "$names"
for user in producer worker monitor operator; do certificate "$user" clientAuth; done
# Containers' users have other numbers than this one: the folder (0700) keeps others out, not the files.
chmod 444 ./*.crt ./producer.key ./worker.key ./monitor.key ./operator.key ./redis.key
