# shellcheck shell=bash
# Sourced by the launchers: messages, flags, and commands that --dry-run shows and does not run.

DRY_RUN=0

# One line on stderr, exit code 2: what is wrong and what to do.
die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# The comment at a script's head is its help.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# need NAME...: variables that flags or the environment must have set.
need() {
  local name flag
  for name in "$@"; do
    if [[ -z ${!name:-} ]]; then
      flag=${name,,}
      die "--${flag//_/-} is missing; give it, or set $name in the environment (--help says what it is)"
    fi
  done
}

# Sets NAME from --name=value; fails where the flag is none of the names given.
take() {
  local flag=$1 name
  shift
  for name in "$@"; do
    local option=${name,,}
    if [[ $flag == "--${option//_/-}="* ]]; then
      printf -v "$name" '%s' "${flag#*=}"
      return 0
    fi
  done
  die "$flag is not a flag; --help lists them"
}

# Words so quoted that a shell reads them back as they are.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

# Shows a command; runs it, unless --dry-run was given.
run() {
  printf '%s\n' "$(quoted "$@")" >&3
  ((DRY_RUN)) || "$@"
}
exec 3>&2

# What --dry-run shows is the result that was asked for, and goes to stdout.
dry_run() {
  DRY_RUN=1
  exec 3>&1
}
