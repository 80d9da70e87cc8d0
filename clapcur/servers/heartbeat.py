"""How a flow run shows that its process lives: one rule for whoever sends the sign and whoever misses it.

A run sends a sign of life every `EVERY_S` seconds. Prefect's own default is 180 s, and then the automation in
deployments/automations.yaml, which waits `SILENCE_S`, would call every longer run crashed while it works. Hence the
frequency is set wherever runs come from: for the processes of ``clapcur up``, for the commands that run a flow while
those servers are there, in the command of the work pools (flows/register.py), for a worker that was started by
hand, and in docker-compose.yml. The files repeat the numbers; tests/servers/test_heartbeat.py compares them.
"""

EVERY_S = 30  # the shortest time that Prefect allows
SILENCE_S = 3 * EVERY_S  # so long without a sign, and a run counts as crashed
VARIABLE = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
