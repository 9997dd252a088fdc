# Starts a visionthink command as a Ray job, by the interpreter of the environment that the cluster runs in. That need not
# be on the PATH of a job, so it is read off the files that the parent, a process of Ray, has mapped.
python=$(sed -n 's|^.* \(/.*\)/lib/python3[^/]*/site-packages/ray/.*$|\1/bin/python|p' /proc/$PPID/maps 2>/dev/null | head -n 1)
[ -x "$python" ] || python=${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}
[ -x "$python" ] || python=$(command -v python || command -v python3)
exec "$python" -m cluster.cli "$@"
