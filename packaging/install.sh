#!/bin/sh
# Installs Mortar on this host from a release build:
#
#   cargo build --release && sudo packaging/install.sh
#
# brickd            -> /usr/sbin            the server (with a systemd unit, not enabled)
# mortar            -> /usr/bin             the command line, with completions and manual pages
# mount-mortar      -> /sbin/mount.mortar   what 'mount -t mortar' runs (and 'mount -o remount', as
#                                           /sbin/mount.fuse.mortar)
#
# BUILD=dir takes the programs from another folder; DESTDIR=dir installs below another root, as a
# package's build does. 'install.sh --remove' takes away what this put in place; the data in
# /var/lib/mortar and in the brick folders stays.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
build=${BUILD:-$here/../target/release}
root=${DESTDIR:-}
bash_dir=$root/usr/share/bash-completion/completions
zsh_dir=$root/usr/share/zsh/vendor-completions
fish_dir=$root/usr/share/fish/vendor_completions.d
man_dir=$root/usr/share/man/man1
unit_dir=$root/usr/lib/systemd/system

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

reload_units() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
}

remove() {
    if [ -z "$root" ] && [ -d /run/systemd/system ]; then
        systemctl disable --now brickd.service 2>/dev/null || :
    fi
    rm -f "$root/usr/sbin/brickd" "$root/usr/bin/mortar" "$root/sbin/mount.mortar" \
        "$root/sbin/mount.fuse.mortar" "$bash_dir/mortar" "$zsh_dir/_mortar" "$fish_dir/mortar.fish" \
        "$unit_dir/brickd.service" "$man_dir/mortar.1" "$man_dir"/mortar-*.1
    reload_units
    echo "Mortar is removed; data in /var/lib/mortar and in brick folders is untouched."
}

[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "run it as root, or set DESTDIR"
case ${1:-} in
--remove)
    remove
    exit 0
    ;;
'') ;;
*) fail "unknown argument '$1' (only --remove is known)" ;;
esac

for program in brickd mortar mount-mortar; do
    [ -x "$build/$program" ] || fail "$build/$program is missing: run 'cargo build --release' first"
done

install -D -m 755 "$build/brickd" "$root/usr/sbin/brickd"
install -D -m 755 "$build/mortar" "$root/usr/bin/mortar"
install -D -m 755 "$build/mount-mortar" "$root/sbin/mount.mortar"
# mount(8) looks for the type in /proc/mounts when it remounts.
ln -sf mount.mortar "$root/sbin/mount.fuse.mortar"
install -D -m 644 "$here/brickd.service" "$unit_dir/brickd.service"

mkdir -p "$bash_dir" "$zsh_dir" "$fish_dir" "$man_dir"
"$build/mortar" completions bash >"$bash_dir/mortar"
"$build/mortar" completions zsh >"$zsh_dir/_mortar"
"$build/mortar" completions fish >"$fish_dir/mortar.fish"
"$build/mortar" man "$man_dir" >/dev/null
reload_units

echo "Mortar is installed. Start it with 'systemctl enable --now brickd', on each host; then"
echo "'mortar peer probe HOST' on one of them. Clients need nothing but 'mount -t mortar'."
