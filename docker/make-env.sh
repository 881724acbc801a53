#!/bin/sh
# Write docker/.env: env.example with a fresh secret wherever it leaves one open.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "docker/.env is there already, and stays as it is" >&2
    exit 1
fi
umask 077
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
sed -e "s/^\(POSTGRES_PASSWORD\|RAY_AUTH_TOKEN\|AWS_SECRET_ACCESS_KEY\)=$/\1=@/" \
    -e "s/^B3_PREFECT_AUTH=$/B3_PREFECT_AUTH=b3:@/" \
    -e "s/^AWS_ACCESS_KEY_ID=$/AWS_ACCESS_KEY_ID=b3@/" env.example |
    while IFS= read -r line; do
        case $line in
            *=*@) printf '%s%s\n' "${line%@}" "$(secret)" ;;
            *) printf '%s\n' "$line" ;;
        esac
    done > .env
