# Shared by the scripts: finds or installs what they need. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# as_root COMMAND...: as it is when root, else through sudo.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
    fail "needs root for: $* (run it yourself, or install sudo)"; fi
}

# need_packages PACKAGE...: installs those Debian packages that are missing.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  command -v apt-get >/dev/null || fail "not a Debian or Ubuntu machine; install by hand: ${missing[*]}"
  say "installing ${missing[*]}"
  if printf '%s\n' "${missing[@]}" | grep -q '^postgresql'; then
    # The package would make and start a cluster of its own, which nobody asked for.
    as_root mkdir -p /etc/postgresql-common/createcluster.d
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.d/stemma.conf >/dev/null
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
  command -v cargo >/dev/null || fail "Rust 1.95 or newer is needed: install it with rustup or your distribution"
  need_packages gcc libc6-dev make
}

# The newest PostgreSQL of the distribution, where none is installed.
need_postgresql() {
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && return 0
  need_packages postgresql postgresql-contrib
}
