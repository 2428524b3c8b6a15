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
