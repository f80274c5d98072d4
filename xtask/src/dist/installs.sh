# Installs a package into a copy of this machine's root whose changes are thrown away, runs what it brought, removes it.
# Arguments: deb|rpm, the package, its version. Runs in a mount namespace of its own.
set -euo pipefail
kind=$1 package=$2 version=$3

work=$(mktemp -d)
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay none -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
for folder in proc sys dev; do
    mount --rbind "/$folder" "$work/root/$folder"
done
# What runs on this machine is not to be told of units that come and go in here.
mount -t tmpfs none "$work/root/run"
cp "$package" "$work/root/tmp/package.$kind"

fail() {
    echo "installs: $*" >&2
    exit 1
}
inside() {
    chroot "$work/root" "$@"
}

case $kind in
    deb) inside dpkg --install /tmp/package.deb ;;
    rpm) inside rpm --install --nodeps /tmp/package.rpm ;;
esac

[ "$(inside malloc-daemon --version)" = "malloc-daemon $version" ] || fail "the daemon says another version"
inside getent passwd malloc-daemon > /dev/null || fail "the service's user is missing"
inside malloc-daemon check-config > /dev/null || fail "the installed configuration is refused"
# TLS is off, and there for those who ask: another build says that it has none.
printf '[tls]\ncertificate = "/nonexistent"\nkey = "/nonexistent"\n' > "$work/root/tmp/tls.toml"
refused=$(inside malloc-daemon check-config /tmp/tls.toml 2>&1) && fail "a certificate that is not there is taken"
case $refused in *--features*) fail "the packaged build has no TLS" ;; esac
[ -s "$work/root/usr/share/bash-completion/completions/malloc-daemon" ] || fail "bash learns no completions"
inside gzip --test /usr/share/man/man1/malloc-daemon-serve.1.gz || fail "serve has no manual page"
[ "$(inside stat --format=%a:%U:%G /etc/malloc-daemon/config.toml)" = 644:root:root ] || fail "the configuration's rights"
if inside sh -c 'command -v systemd-analyze' > /dev/null; then
    inside systemd-analyze verify /usr/lib/systemd/system/malloc-daemon.service || fail "systemd refuses the unit"
fi

# It is static and stripped: what it can do is tried on the machine's libc.
inside malloc-daemon doctor > "$work/log" 2>&1 || { cat "$work/log" >&2; fail "doctor finds this machine wanting"; }
# As the only file of a container's image: the libc is that of the machine's other processes.
mkdir -p "$work/image/proc" "$work/image/sys"
cp "$work/root/usr/bin/malloc-daemon" "$work/image/"
mount --rbind /proc "$work/image/proc"
mount --rbind /sys "$work/image/sys"
chroot "$work/image" /malloc-daemon doctor > "$work/log" 2>&1 || {
    cat "$work/log" >&2
    fail "doctor finds this machine wanting from within an image of its own"
}

# The installed program does its main work.
# Not by the function, whose shell the signals below would go to.
chroot "$work/root" malloc-daemon serve --listen unix:/run/malloc-daemon.sock 2> "$work/log" &
daemon=$!
trap 'kill $daemon 2> /dev/null || true' EXIT
answer() {
    inside curl --silent --max-time 5 --unix-socket /run/malloc-daemon.sock "http://localhost$1"
}
# Each turn takes a tenth of a second or more.
for _ in $(seq 600); do
    [ "$(answer /readyz)" = ready ] && break
    kill -0 $daemon 2> /dev/null || { cat "$work/log" >&2; fail "the installed daemon ended"; }
    sleep 0.1
done
[ "$(answer /readyz)" = ready ] || fail "the installed daemon is not ready after a minute"
answer /v1/processes | grep --quiet '"comm"' || fail "the installed daemon names no process"
kill -TERM $daemon
wait $daemon || { cat "$work/log" >&2; fail "the installed daemon did not end well"; }
trap - EXIT

case $kind in
    deb)
        echo '# kept' >> "$work/root/etc/malloc-daemon/config.toml"
        inside dpkg --remove malloc-daemon
        [ -e "$work/root/etc/malloc-daemon/config.toml" ] || fail "a removal took the configuration"
        inside dpkg --purge malloc-daemon
        ;;
    rpm) inside rpm --erase malloc-daemon ;;
esac
[ ! -e "$work/root/usr/bin/malloc-daemon" ] || fail "the program stayed"
[ ! -e "$work/root/etc/malloc-daemon/config.toml" ] || fail "the configuration stayed"
echo "installs: the .$kind installs, serves and goes again"
