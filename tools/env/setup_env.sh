#!/usr/bin/env bash
# Makes the environment that this project's commands run in, and is quick when it exists.
#
# usage: tools/env/setup_env.sh [onedl|openmmlab]
#
# onedl      (default)  .venv            requirements/onedl.txt
# openmmlab             .venv-openmmlab  requirements/openmmlab.txt
#
# Environment variables:
#   PYTHON              interpreter to start from                  (default: python3)
#   MAX_JOBS            compilers at once for mmcv's ops           (default: all cores)
#   PARTIALNET_WHEELS   where built mmcv wheels are kept
#                       (default: ~/.cache/partialnet-mm/wheels)
set -euo pipefail

usage() { sed -n '4,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ $# -le 1 ] || usage
stack=${1:-onedl}
case "$stack" in
    onedl) venv=.venv mmcv=onedl-mmcv oldest=10 newest=99 ;;
    openmmlab) venv=.venv-openmmlab mmcv=mmcv oldest=10 newest=11 ;;
    *) usage ;;
esac

cd "$(dirname "$0")/../.."
requirements=requirements/$stack.txt
stamp=$venv/.partialnet-ready
wheels=${PARTIALNET_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/partialnet-mm/wheels}
# What the environment was made from, and where: a moved environment does not work.
want="$(pwd) $(cat "$requirements" requirements/test.txt setup.py tools/env/setup_env.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

started=$SECONDS
step() { printf '\n== [%s/6] %s  (%ds)\n' "$1" "$2" $((SECONDS - started)); }
fail() { printf 'setup_env.sh: %s\n' "$1" >&2; exit 1; }

step 1 "Python and compiler"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "'$python' is not there: set PYTHON to a Python 3.$oldest or newer"
"$python" -c "import sys; sys.exit(not (3, $oldest) <= sys.version_info[:2] <= (3, $newest))" || fail \
    "$("$python" --version) does not fit the set '$stack', which needs 3.$oldest or newer$(
        [ "$newest" = 99 ] || printf ' up to 3.%s' "$newest"): set PYTHON to another interpreter"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler: install one (Debian: g++) or set CXX"
"$python" --version
"${CXX:-c++}" --version | head -n 1
rm -f "$stamp"
if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$python" -m venv --clear "$venv"
fi
py=$(pwd)/$venv/bin/python

step 2 "torch, and what compiling against it needs"
# The build tools come with torch: mmcv's build reads the torch it is compiled for,
# so it runs without build isolation, and only after this step.
grep -E '^(torch|torchvision|numpy|setuptools)[=<>]' "$requirements" > "$venv/first.txt"
"$py" -m pip install -r "$venv/first.txt" wheel ninja 'pybind11<3' psutil

step 3 "mmcv with its ops"
version=$(sed -n "s/^$mmcv==//p" "$requirements")
key=$("$py" - <<'PYTHON'
import sys, torch
device = 'cu' + torch.version.cuda if torch.cuda.is_available() else 'cpu'
print(f'torch{torch.__version__.split("+")[0]}-cp{sys.version_info[0]}{sys.version_info[1]}-{device}')
PYTHON
)
house=$wheels/$key
wheel() { find "$house" -name "${mmcv//-/_}-$version-*.whl" 2>/dev/null | head -n 1; }
if [ -z "$(wheel)" ]; then
    log=$(pwd)/$venv/mmcv-build.log
    echo "compiling $mmcv $version for $key: 4 to 10 minutes on 2 to 4 cores; log: $log"
    if [[ $key == *-cu* ]]; then
        command -v nvcc >/dev/null || fail \
            "torch sees a GPU but nvcc is not on the PATH: install the CUDA toolkit, or use prebuilt wheels (docs/install.md, "Existing environments")"
        export FORCE_CUDA=1
    fi
    mkdir -p "$house"
    # The partial wheel goes to a folder of its own, so that a stopped build leaves none behind.
    building=$(mktemp -d "$house/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    "$py" -m pip download --no-build-isolation --no-cache-dir --no-deps --no-binary "$mmcv" -d "$building" "$mmcv==$version" > "$log" 2>&1 ||
        { tail -n 30 "$log" >&2; fail "the source of $mmcv $version could not be fetched: $log"; }
    tar -xzf "$building"/*.tar.gz -C "$building"
    # mmcv asks for C++14 or 17; torch 2.14's headers need C++20. Without a wish of mmcv's own,
    # torch's build helper names the standard that its headers need.
    sed -i "s/'-std=c++1[47]'//g" "$building"/*/setup.py
    # No pip cache: it would hand this wheel to an environment with another torch.
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)} PYTHONUNBUFFERED=1 \
        PATH="$(pwd)/$venv/bin:$PATH" "$py" -m pip wheel -v --no-build-isolation --no-cache-dir --no-deps \
        -w "$building" "$building"/*/ 2>&1 | tee -a "$log" |
        { grep --line-buffered -oE '\[[0-9]+/[0-9]+\] ' || true; } | while read -r count; do
            if [ -t 1 ]; then
                printf '\r   compiled %s %ds ' "$count" $((SECONDS - started))
            elif [[ $count =~ ^\[[0-9]*0/ ]]; then
                echo "   compiled $count  $((SECONDS - started))s"
            fi
        done || { tail -n 30 "$log" >&2; fail "mmcv did not compile: $log"; }
    echo
    mv "$building"/*.whl "$house/"
    rm -rf "$building"
fi
"$py" -m pip install --no-deps --force-reinstall "$(wheel)"

step 4 "the rest of the set '$stack'"
"$py" -m pip install -r "$requirements" -r requirements/test.txt

step 5 "partialnet_mm, editable"
"$py" -m pip install --no-build-isolation --no-deps -e .

step 6 "verifying"
"$py" -m partialnet_mm.doctor
printf '%s' "$want" > "$stamp"
printf '\nready: %s, in %d s\n' "$venv" $((SECONDS - started))
