#!/usr/bin/env bash
# Runs `python -m jdcl_jax.main` on a Cloud TPU VM: creates the VM (or reuses it), copies this
# working tree, installs it with the `tpu` extra into a virtual environment, starts the run in the
# background and prints where its log and its results are. While that run goes on, a second start
# stops with one line; afterwards the same command starts it again (and so resumes a cut-off run).
#
# On a slice of several hosts each of them runs the same command with --multihost, and the first one has the results.
set -euo pipefail

usage() {
  cat <<'TXT'
usage: launch/tpu_vm.sh --zone ZONE --type TYPE [options] -- ARGUMENTS OF jdcl_jax.main

  --zone ZONE        zone with that kind of TPU, such as us-west4-a
  --type TYPE        accelerator type, such as v5litepod-8, v6e-8 or v4-8, or of several hosts, v5litepod-16
  --version VERSION  runtime version (default: the one that Google names for the type)
  --name NAME        name of the VM (default: jdcl-jax); an existing VM of this name is reused
  --project PROJECT  Google Cloud project (default: gcloud's own setting)
  --delete           wait for the end of the run, copy log and results here, delete the VM
  --dry-run          print every command exactly as it would run, and run nothing

example: launch/tpu_vm.sh --zone us-west4-a --type v5litepod-8 -- --config=configs/cifar10.py:gd
TXT
}

die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Prints its arguments as a line that a POSIX shell reads back as exactly these arguments.
quoted() {
  local separator="" apostrophe="'\\''" word
  for word in "$@"; do
    printf '%s' "$separator"
    case $word in
      "" | *[!A-Za-z0-9_./:=@%+,-]*) printf "'%s'" "${word//\'/$apostrophe}" ;;
      *) printf '%s' "$word" ;;
    esac
    separator=" "
  done
}

# Runs a command, or, with --dry-run, prints it.
run() {
  if [ "$dry_run" = yes ]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

zone="" type="" version="" name=jdcl-jax project="" delete=no dry_run=no
while [ $# -gt 0 ]; do
  option=${1%%=*}
  case $option in
    --zone | --type | --version | --name | --project)
      if [ "$option" != "$1" ]; then
        value=${1#*=}
      else
        [ $# -ge 2 ] || die "$option needs a value"
        shift
        value=$1
      fi
      [ -n "$value" ] || die "$option needs a value"
      case $value in -*) die "$option needs a value, not $value" ;; esac
      case $option in
        --zone) zone=$value ;;
        --type) type=$value ;;
        --version) version=$value ;;
        --name) name=$value ;;
        --project) project=$value ;;
      esac
      ;;
    *)
      case $1 in
        --delete) delete=yes ;;
        --dry-run) dry_run=yes ;;
        --help | -h) usage && exit 0 ;;
        --) shift && break ;;
        *) die "unknown option $1: arguments of jdcl_jax.main go after --; see launch/tpu_vm.sh --help" ;;
      esac
      ;;
  esac
  shift
done

[ -n "$zone" ] || die "--zone is missing, such as --zone us-west4-a"
[ -n "$type" ] || die "--type is missing, such as --type v5litepod-8"
[ $# -gt 0 ] || die "nothing to run: write -- and the arguments of jdcl_jax.main, such as -- --config=configs/digits.py"
[[ $name =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] ||
  die "--name $name: write lower-case letters, digits and hyphens, a letter first"
[[ $type =~ ^(v2|v3|v4|v5litepod|v5p|v6e)-([1-9][0-9]{0,4})$ ]] ||
  die "--type $type is unknown: write for example v5litepod-8, v6e-8, v5p-8, v4-8, v3-8 or v2-8"
# In every family a host holds up to 8 of what the type counts: chips (v5e, v6e) or cores (others).
hosts=one
[ "${BASH_REMATCH[2]}" -le 8 ] || hosts=several
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    *) version='tpu-ubuntu2204-base' ;;
  esac
fi

# The workdir is known here, so that it can be printed and fetched: the one of the arguments, or ours.
workdir=""
previous=""
for argument in "$@"; do
  [ "$previous" != --workdir ] || workdir=$argument
  case $argument in --workdir=*) workdir=${argument#*=} ;; esac
  previous=$argument
done
if [ -z "$workdir" ]; then
  workdir=runs/$name
  set -- "$@" "--workdir=$workdir"
fi
[ "$hosts" = one ] || set -- "$@" --multihost
case $workdir in
  /*) remote_workdir=$workdir ;;
  *) remote_workdir=jdcl_jax/$workdir ;; # seen from the VM's home folder
esac

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
archive=${TMPDIR:-/tmp}/$name-jdcl_jax.tar.gz
tpu=(gcloud compute tpus tpu-vm)
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")
log=jdcl_jax-logs/$name.log

on_vm() {
  run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command="$1"
}

from_vm() {
  run "${tpu[@]}" scp --recurse "$name:$1" "$2" "${where[@]}" --worker=0
}

state=jdcl_jax-logs/$name
# A run writes its process number; the command line tells it from a stranger with the same number.
unpack="set -e; if grep -qs jdcl_jax.main \"/proc/\$(cat $state.pid 2>/dev/null)/cmdline\"; then"
unpack+=" echo 'error: a run is going on already on $name, see $log there' >&2; exit 3; fi"
unpack+="; mkdir -p jdcl_jax jdcl_jax-logs; tar -xzf $name-jdcl_jax.tar.gz -C jdcl_jax"
# shellcheck disable=SC2016  # $HOME and $PATH are the VM's.
# TPU VM images bring Python 3.10; uv fetches a newer one where there is none.
install='set -e; export PATH="$HOME/.local/bin:$PATH"'
install+='; command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh'
install+='; test -x jdcl_jax-venv/bin/python || uv venv --python 3.12 jdcl_jax-venv'
install+='; uv pip install --python jdcl_jax-venv/bin/python "./jdcl_jax[tpu]"'
# The subshell ignores the hang-up that ends the ssh session, and its children inherit that.
start="rm -f $state.status; (trap '' HUP; cd jdcl_jax && ../jdcl_jax-venv/bin/python -m jdcl_jax.main $(quoted "$@")"
start+="; echo \$? >../$state.status) >$log 2>&1 </dev/null & echo \$! >$state.pid"
wait_for_end="tail --pid=\"\$(cat $state.pid)\" -n +1 -f $log; exit \"\$(cat $state.status)\""

[ "$dry_run" = yes ] || command -v gcloud >/dev/null ||
  die "gcloud is not installed: see https://cloud.google.com/sdk/docs/install, or add --dry-run"

describe=("${tpu[@]}" describe "$name" "${where[@]}" "--format=value(state)")
create=("${tpu[@]}" create "$name" "${where[@]}" --accelerator-type="$type" --version="$version")
if [ "$dry_run" = yes ]; then
  run "${describe[@]}"
  echo "# only if that finds no VM:"
  run "${create[@]}"
elif ! "${describe[@]}" 2>/dev/null; then
  "${create[@]}"
fi

run tar -czf "$archive" -C "$repository" --exclude=./.git --exclude=./runs --exclude='.venv*' \
  --exclude=venv --exclude=__pycache__ .
run "${tpu[@]}" scp "$archive" "$name:$name-jdcl_jax.tar.gz" "${where[@]}" --worker=all
on_vm "$unpack"
on_vm "$install"
on_vm "$start"

echo "# log on the VM:     $log"
echo "# workdir on the VM: $remote_workdir"
echo "# follow the run:    $(quoted "${tpu[@]}" ssh "$name" "${where[@]}" --worker=0 --command="tail -n 50 -f $log")"
echo "# delete the VM:     $(quoted "${tpu[@]}" delete "$name" "${where[@]}" --quiet)"

if [ "$delete" = yes ]; then
  status=0
  on_vm "$wait_for_end" || status=$?
  # Nothing is deleted before the log and the results are here (set -e stops where copying fails).
  run mkdir -p "runs/$name"
  from_vm "$log" "runs/$name"
  from_vm "$remote_workdir" "runs/$name"
  run "${tpu[@]}" delete "$name" "${where[@]}" --quiet
  exit "$status"
fi
