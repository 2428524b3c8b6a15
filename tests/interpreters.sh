# shellcheck shell=sh
# SPDX-License-Identifier: GPL-3.0-or-later
# To be sourced: the folder of each real interpreter that this machine has. A pyenv shim is none: it answers for versions
# that are not active, and with an error.

# interpreter_directory 3.12 -> the folder that holds python3.12, or nothing
interpreter_directory() {
  for directory in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin /usr/local/bin /usr/bin; do
    if [ -x "$directory/python$1" ]; then
      printf '%s\n' "$directory"
      return
    fi
  done
}

# environment 3.12 requirements-dev.txt -> the folder of a virtual environment made from that lock, kept while neither
# changes; nothing where this machine lacks that Python
environment() {
  directory=$(interpreter_directory "$1")
  if [ -z "$directory" ]; then return; fi
  environment=build/$(basename "$2" .txt)-$1
  recipe=$("$directory/python$1" -V; sha256sum "$2")
  if [ "$recipe" != "$(cat "$environment/recipe" 2>/dev/null)" ]; then
    .venv/bin/uv venv --quiet --clear --python "$directory/python$1" "$environment"
    .venv/bin/uv pip install --quiet --python "$environment/bin/python" --require-hashes -r "$2"
    echo "$recipe" >"$environment/recipe"
  fi
  printf '%s\n' "$environment"
}
