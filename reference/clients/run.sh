#!/usr/bin/env bash
# Runs OpenAI's own clients, unmodified, against a server that this script starts.
#
#     bash reference/clients/run.sh target/release/gpt4roi
#
# Needs python3 with venv, and node with npm; the packages are installed into a folder that goes away.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "$1")

place=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null || true; rm -rf "$place"' EXIT

python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.54.0
cp reference/clients/openai_client.mjs "$place"
(cd "$place" && npm install --silent --no-audit --no-fund --no-save openai@7.57.0)

touch "$place/said"
GPT4ROI_API_KEY=of-the-test "$program" serve --port 0 2>"$place/said" &
server=$!
for _ in $(seq 600); do
    address=$(sed -n 's/.*listening on //p' "$place/said")
    if [ -n "$address" ] && python3 -c "import urllib.request; urllib.request.urlopen('$address/readyz')" 2>/dev/null; then
        break
    fi
    sleep 0.1
done

"$place/venv/bin/python" reference/clients/openai_client.py "$address/v1" of-the-test docs/example.png
node "$place/openai_client.mjs" "$address/v1" of-the-test docs/example.png
kill -TERM "$server"
wait "$server"
