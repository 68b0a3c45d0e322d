# shellcheck shell=bash
# Shared functions of the launch scripts: error messages, flags, and --dry-run.

DRY_RUN=0

# Prints a one-line error to stderr and exits with code 2.
die() {
  printf '%s: %s\n' "${0##*/}" "$1" >&2
  exit 2
}

# Prints the comment at the top of the script.
help() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# need NAME...: fails if one of these variables is set neither by a flag nor in the environment.
need() {
  local name flag
  for name in "$@"; do
    if [[ -z ${!name:-} ]]; then
      flag=${name,,}
      die "--${flag//_/-} is missing; pass it, or set $name in the environment (see --help)"
    fi
  done
}

# take FLAG NAME...: sets the variable NAME from --name=value; fails if FLAG matches no NAME.
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
  die "$flag is not a flag; see --help"
}

# Quotes the arguments for a shell.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}

# Prints a command, and runs it unless --dry-run was given.
run() {
  printf '%s\n' "$(quoted "$@")" >&3
  ((DRY_RUN)) || "$@"
}
exec 3>&2

# With --dry-run the commands are the result, so they go to stdout; otherwise they go to stderr.
dry_run() {
  DRY_RUN=1
  exec 3>&1
}
