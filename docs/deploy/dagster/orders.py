"""The output of the pipeline `orders` as an asset, every hour.

Dagster schedules and tries again; where the pipeline goes on is oxide_flow's business, so a try is the same
command each time. What an exit code means for Dagster:

    0       done
    1       failed, or stopped: try again, it resumes at the last checkpoint
    4       somebody else holds the pipeline or took it over: try again later
    2 3 70  usage or configuration, a damaged state, a bug: a person must look, no try helps
"""

import json
import os
import subprocess

import dagster as dg

PROGRAM = os.environ.get("OXIFLOW_PROGRAM", "/usr/local/bin/oxide_flow")
PROJECT = os.environ.get("OXIFLOW_PROJECT", "/etc/oxiflow")
# settings.stop_timeout (10 s), the last save while the store hangs (40 % of lease_ttl), a reserve.
STOP_SECONDS = 45
HOPELESS = (2, 3, 70)
# The tries are for outages.
TRIES = 3
SECONDS_BETWEEN = int(os.environ.get("OXIFLOW_RETRY_SECONDS", "120"))


def oxide_flow(*arguments, name):
    """Runs oxide_flow, and returns the data of the document that it prints."""
    environment = {**os.environ, "OXIFLOW_WORKER_NAME": name}
    process = subprocess.Popen(
        [PROGRAM, *arguments, "--project", PROJECT, "--json"],
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        # The run is terminated: so is the pipeline, in order, and its lease is released.
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    code = process.returncode
    told = f"oxide_flow ended with code {code}; see standard error"
    if code in HOPELESS:
        raise dg.Failure(told, allow_retries=False)
    if code != 0:
        raise dg.RetryRequested(TRIES, SECONDS_BETWEEN) from dg.Failure(told)
    return json.loads(output)["data"]


# `--wait` takes the pipeline over from a try whose machine is gone: longer than `lease_ttl`.
@dg.asset
def orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    name = f"dagster:{context.run_id}:{context.retry_number}"
    state = oxide_flow("run", "orders", "--wait", "5m", name=name)
    metadata = {"run_id": state["run_id"], "records": state["records_processed"]}
    return dg.MaterializeResult(metadata=metadata)


hourly = dg.ScheduleDefinition(
    name="orders_hourly", target=dg.AssetSelection.assets(orders), cron_schedule="7 * * * *"
)
defs = dg.Definitions(assets=[orders], schedules=[hourly])
