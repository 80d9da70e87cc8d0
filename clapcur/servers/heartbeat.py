"""The heartbeat of a flow run: one interval for the sender and for the automation that misses it.

A run sends a heartbeat every `EVERY_S` seconds. With Prefect's default of 180 s, the automation in
deployments/automations.yaml, which waits `SILENCE_S`, would mark every longer run as crashed while it works. The
interval is therefore set wherever runs start: for the processes of ``clapcur up``, for commands that run a flow while
those servers run, in the command of the work pools (flows/register.py), which covers workers started by hand, and in
docker-compose.yml. The files repeat the numbers; tests/servers/test_heartbeat.py compares them.
"""

EVERY_S = 30  # the shortest interval that Prefect allows
SILENCE_S = 3 * EVERY_S  # after this long without a heartbeat, a run counts as crashed
VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
